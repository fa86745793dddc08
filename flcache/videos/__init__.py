"""From annotation files to decoded frames: annotations, clip sampling, decoders, decode pool, synthetic videos.

`flcache.videos.kinetics` holds the torch dataset; nothing here imports torch.
"""

from typing import TYPE_CHECKING

from flcache.lazy import load_on_demand

if TYPE_CHECKING:
    from flcache.videos.annotations import Video, list_videos, read_annotations, read_labels
    from flcache.videos.clips import needs_duration, plan_clips
    from flcache.videos.decoders import ClipRequest, DecodedClip, VideoInfo, decode_clip, probe
    from flcache.videos.folder import VideoFolder
    from flcache.videos.options import ClipRule, DatasetOptions
    from flcache.videos.planned import PlannedClip, decode_planned, planned_clips, probe_durations
    from flcache.videos.pool import DecodePool
    from flcache.videos.synthetic import write_dataset
else:
    __getattr__ = load_on_demand(__name__, __file__)

__all__ = [
    "ClipRequest",
    "ClipRule",
    "DatasetOptions",
    "DecodePool",
    "DecodedClip",
    "PlannedClip",
    "Video",
    "VideoFolder",
    "VideoInfo",
    "decode_clip",
    "decode_planned",
    "list_videos",
    "needs_duration",
    "plan_clips",
    "planned_clips",
    "probe",
    "probe_durations",
    "read_annotations",
    "read_labels",
    "write_dataset",
]
