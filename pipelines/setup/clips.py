"""The clips of a split: read annotations, probe durations where the clip rule needs them, plan, find the videos."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from flcache.cache import assign_shards, get_codec
from flcache.config import Config
from flcache.engines import ClipTask
from flcache.errors import DataError, DecodeError
from flcache.videos import (
    ClipRequest,
    ClipRule,
    Video,
    VideoFolder,
    needs_duration,
    plan_clips,
    probe,
    read_annotations,
)

SPLITS = ("train", "val")
LISTED_MISSING = 5
PROBE_THREADS = 8


@dataclass(frozen=True)
class SplitClips:
    """The clips of one split, before shards are assigned."""

    split: str
    clips: pd.DataFrame
    folder: VideoFolder
    missing: tuple[Video, ...]
    """Annotated videos that are not on disk."""


def read_splits(config: Config) -> list[SplitClips]:
    """The clips of every split that has an annotation file. Raises ConfigError if `train` has none."""
    config.require("dataset.train")
    return [read_split(config, split) for split in SPLITS if getattr(config.dataset, split)]


def read_split(config: Config, split: str) -> SplitClips:
    """The clips of `split` and which of its videos are missing. Raises DataError where too many are."""
    dataset = config.dataset
    annotations, root = Path(config.require(f"dataset.{split}")), Path(config.require("dataset.root"))
    videos = read_annotations(annotations, labels=Path(dataset.labels) if dataset.labels else None)
    folder = VideoFolder(root)
    missing = tuple(video for video in videos if folder.find(video) is None)
    _check_missing(config, split, videos, missing, folder)
    clips = plan_clips(videos, config.clip, _probe(needs_duration(config.clip, videos), folder))
    return SplitClips(split, clips, folder, missing)


def report_missing(splits: Sequence[SplitClips]) -> None:
    """List the first missing videos of each split on stderr."""
    for split in splits:
        for video in split.missing[:LISTED_MISSING]:
            print(f"Missing video ({split.split}): {split.folder.expected(video)}", file=sys.stderr)
        if len(split.missing) > LISTED_MISSING:
            print(f"... and {len(split.missing) - LISTED_MISSING} more of {split.split}", file=sys.stderr)


def assign_split(config: Config, latent_shape: Sequence[int], split: SplitClips) -> pd.DataFrame:
    """The plan of a split: its clips in shard order, sized by the bytes that `latent_shape` (T, H, W, D) takes."""
    clip_bytes = get_codec(config.cache.codec).clip_bytes(tuple(latent_shape))
    sizes = {"clip_bytes": clip_bytes, "shard_bytes": config.cache.shard_bytes, "seed": config.cache.seed}
    return assign_shards(split.clips, split.split, **sizes)


def clip_tasks(plan: pd.DataFrame, folder: VideoFolder, rule: ClipRule) -> list[ClipTask]:
    """The rows of a plan as tasks, each with the path of its video where there is one."""
    tasks = []
    for row in plan.to_dict("records"):
        video = Video(row["video_id"], row["video"], row["label"], None)
        timestamps = None if row["timestamps"] is None else tuple(row["timestamps"])
        tasks.append(
            ClipTask(
                slot=row["slot"],
                clip_id=row["clip_id"],
                video=row["video"],
                label=row["label"],
                path=folder.find(video),
                expected=folder.expected(video),
                request=ClipRequest(rule.frames, row["start_s"], timestamps, rule.stride, rule.short),
            )
        )
    return tasks


def _probe(videos: list[Video], folder: VideoFolder) -> dict[str, float]:
    """Seconds by video id, from the headers; videos that cannot be read are left out and fail when they are decoded."""

    def duration_s(video: Video) -> float | None:
        path = folder.find(video)
        try:
            return probe(path).duration_s if path else None
        except DecodeError:
            return None

    with ThreadPoolExecutor(PROBE_THREADS) as threads:
        durations = threads.map(duration_s, videos)
    return {video.video_id: seconds for video, seconds in zip(videos, durations, strict=True) if seconds is not None}


def _check_missing(
    config: Config, split: str, videos: list[Video], missing: tuple[Video, ...], folder: VideoFolder
) -> None:
    if len(missing) <= config.dataset.max_missing_fraction * len(videos):
        return
    raise DataError(
        f"{getattr(config.dataset, split)}: {len(missing)} of {len(videos)} videos are missing below "
        f"{config.dataset.root}, the first expected at {folder.expected(missing[0])}; check dataset.root, or allow it "
        f"with dataset.max_missing_fraction={min(1.0, len(missing) / len(videos) + 0.005):.2f}"
    )
