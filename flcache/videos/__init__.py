"""From annotation files to decoded frames: annotations, clip sampling, decoders, decode pool, synthetic videos."""

from flcache.videos.annotations import Video, VideoFolder, read_annotations
from flcache.videos.clips import ClipRule, needs_duration, plan_clips
from flcache.videos.synthetic import write_dataset

__all__ = ["ClipRule", "Video", "VideoFolder", "needs_duration", "plan_clips", "read_annotations", "write_dataset"]
