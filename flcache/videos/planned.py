"""A row of a plan as a plain value that any process can decode without a configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flcache.errors import DecodeError
from flcache.videos.decoders import ClipRequest, DecodedClip, VideoInfo
from flcache.videos.folder import VideoFolder
from flcache.videos.pool import DecodePool
from flcache.videos.video_file import VideoFile

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PlannedClip:
    """One clip of a plan."""

    clip_id: str
    video_id: str
    video: str
    """The annotated path, relative to the root."""
    label: str | None
    slot: int
    """0 if the plan has no shards yet."""
    request: ClipRequest
    file: VideoFile | None = None
    """Its video, where that is known already; else it is looked for."""


def planned_clips(plan: pd.DataFrame | Iterable[Mapping[str, Any]]) -> list[PlannedClip]:
    """The rows of a plan, from `plan_clips` or from a cache, in its order."""
    rows: Iterable[Mapping[Any, Any]] = plan.to_dict("records") if hasattr(plan, "to_dict") else plan
    return [
        PlannedClip(
            clip_id=row["clip_id"],
            video_id=row["video_id"],
            video=row["video"],
            label=row["label"],
            slot=row.get("slot", 0),
            request=ClipRequest(
                frames=row["frames"],
                start_s=row["start_s"],
                timestamps=None if row["timestamps"] is None else tuple(map(float, row["timestamps"])),
                stride=row["stride"],
                short=row["short"],
                end_s=None if (end_s := row.get("end_s")) is None or math.isnan(end_s) else end_s,
            ),
        )
        for row in rows
    ]


def probe_durations(
    pool: DecodePool, files: Mapping[str, VideoFile], on_header: Callable[[bool], None] = lambda failed: None
) -> dict[str, float]:
    """Seconds by video id, from the headers of `files`. Unreadable ones are left out: decoding them fails later.

    `on_header` is called once a file, with whether its header is unreadable.
    """
    seconds = {}
    for video_id, info in zip(files, pool.probe(list(files.values())), strict=True):
        if isinstance(info, VideoInfo) and info.duration_s is not None:
            seconds[video_id] = info.duration_s
        on_header(not isinstance(info, VideoInfo))
    return seconds


def decode_planned(
    pool: DecodePool, folder: VideoFolder, clips: Iterable[PlannedClip]
) -> Iterator[tuple[PlannedClip, DecodedClip | DecodeError]]:
    """Each clip with its frames or its error, in the order of `clips`."""
    # A video that is not found is opened where it was expected: the error says so.
    paths = ((clip, clip.file or folder.find(clip.video) or folder.expected(clip.video)) for clip in clips)
    return pool.decode((clip, path, clip.request) for clip, path in paths)
