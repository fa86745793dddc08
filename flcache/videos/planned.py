"""A row of a plan as a plain value that any process can decode without a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flcache.errors import DecodeError
from flcache.videos.decoders import ClipRequest, DecodedClip, VideoInfo
from flcache.videos.folder import VideoFolder
from flcache.videos.pool import DecodePool

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


def planned_clips(plan: pd.DataFrame) -> list[PlannedClip]:
    """The rows of a plan, from `plan_clips` or from a cache, in its order."""
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
            ),
        )
        for row in plan.to_dict("records")
    ]


def probe_durations(pool: DecodePool, files: Mapping[str, Path]) -> dict[str, float]:
    """Seconds by video id, from the headers of `files`. Unreadable ones are left out: decoding them fails later."""
    infos = zip(files, pool.probe(list(files.values())), strict=True)
    seconds = {video_id: info.duration_s for video_id, info in infos if isinstance(info, VideoInfo)}
    return {video_id: duration_s for video_id, duration_s in seconds.items() if duration_s is not None}


def decode_planned(
    pool: DecodePool, folder: VideoFolder, clips: Iterable[PlannedClip]
) -> Iterator[tuple[PlannedClip, DecodedClip | DecodeError]]:
    """Each clip with its frames or its error, in the order of `clips`."""
    # A video that is not found is opened where it was expected: the error says so.
    paths = ((clip, folder.find(clip.video) or folder.expected(clip.video)) for clip in clips)
    return pool.decode((clip, path, clip.request) for clip, path in paths)
