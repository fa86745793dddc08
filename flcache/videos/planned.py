"""One planned clip: a row of a plan as a plain value, which any process can decode without a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flcache.errors import DecodeError
from flcache.videos.decoders import ClipRequest, DecodedClip
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
    """The path of its video as annotated, relative to the root."""
    label: str | None
    slot: int
    """Its place in its shard; 0 where a plan has no shards yet."""
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


def decode_planned(
    pool: DecodePool, folder: VideoFolder, clips: Iterable[PlannedClip]
) -> Iterator[tuple[PlannedClip, DecodedClip | DecodeError]]:
    """Each clip with its frames, or with the error that says why there are none, in the order of `clips`."""
    return pool.decode((clip, _path(folder, clip), clip.request) for clip in clips)


def _path(folder: VideoFolder, clip: PlannedClip) -> Path:
    """Where its video is, or should be: opening that says what is wrong."""
    return folder.find(clip.video) or folder.expected(clip.video)
