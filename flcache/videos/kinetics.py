"""Kinetics-400, or a data set annotated like it, as a torch dataset of clips. F frames of H x W pixels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flcache.errors import DataError
from flcache.videos.annotations import Video, read_annotations, read_labels
from flcache.videos.clips import needs_duration, plan_clips
from flcache.videos.decoders import decode_clip
from flcache.videos.folder import VideoFolder
from flcache.videos.options import ClipRule, DatasetOptions
from flcache.videos.planned import planned_clips, probe_durations
from flcache.videos.pool import DecodePool


class KineticsClip(TypedDict):
    """One clip. Videos differ in H and W: resize before collating."""

    frames: Tensor
    """(F, 3, H, W) uint8; past the end of the video its last frame is repeated."""
    mask: Tensor
    """(F,) bool, True where the frame is real and not padding."""
    timestamps: Tensor
    """(F,) float64 seconds from the first displayed frame of the video."""
    label: str
    """Empty where the annotation has no labels."""
    label_index: int
    """Index into `Kinetics400.classes`; -1 without a label."""
    path: str


class Kinetics400(Dataset[KineticsClip]):
    """The clips that `rule` cuts from the annotated videos below `root`.

    `labels` (`index label` lines) fixes the order of `classes`; without it they are the sorted labels of this
    annotation file. `missing` lists the expected paths of missing videos. Raises DataError where more than
    `max_missing_fraction` of the videos are missing; indexing raises DecodeError for a damaged file. Durations that
    `rule` needs and no annotation has are read by another process, which is ended after `probe_timeout_s`.
    """

    def __init__(
        self,
        root: Path | str,
        annotations: Path | str,
        rule: ClipRule,
        *,
        labels: Path | str | None = None,
        max_missing_fraction: float = DatasetOptions.max_missing_fraction,
        probe_timeout_s: float = 60.0,
    ) -> None:
        label_file = Path(labels) if labels is not None else None
        videos = read_annotations(Path(annotations), labels=label_file, root=Path(root))
        self.classes = _classes(videos, label_file)
        folder = VideoFolder(Path(root), (video.path for video in videos))
        found = {video.path: folder.find(video.path) for video in videos}
        self._files = {annotated: path for annotated, path in found.items() if path}
        self.missing = [folder.expected(annotated) for annotated, path in found.items() if not path]
        if len(self.missing) > max_missing_fraction * len(videos):
            raise DataError(
                f"{annotations}: {len(self.missing)} of {len(videos)} videos are missing below {root}, the first one "
                f"{self.missing[0]}; fetch them, mend the root, or raise dataset.max_missing_fraction"
            )
        videos = [video for video in videos if video.path in self._files]
        unknown = {video.video_id: self._files[video.path] for video in needs_duration(rule, videos)}
        with DecodePool(1, probe_timeout_s, max_bytes=rule.max_bytes) as pool:
            durations = probe_durations(pool, unknown)
        self._clips = planned_clips(plan_clips(videos, rule, durations))

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> KineticsClip:
        planned = self._clips[index]
        path = self._files[planned.video]
        clip = decode_clip(path, planned.request)
        label = planned.label or ""
        return KineticsClip(
            frames=torch.from_numpy(clip.frames).permute(0, 3, 1, 2).contiguous(),  # (F, H, W, 3) to (F, 3, H, W)
            mask=torch.from_numpy(clip.mask),
            timestamps=torch.from_numpy(clip.timestamps),
            label=label,
            label_index=self.classes.index(label) if label else -1,
            path=str(path),
        )


def _classes(videos: Iterable[Video], label_file: Path | None) -> list[str]:
    present = {video.label for video in videos if video.label is not None}
    if label_file is None:
        return sorted(present)
    classes = [label for _, label in sorted(read_labels(label_file).items())]
    if unknown := sorted(present - set(classes)):
        raise DataError(f"{label_file}: it lacks the label {unknown[0]!r} and {len(unknown) - 1} more; add them")
    return classes
