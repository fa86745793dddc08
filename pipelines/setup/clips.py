"""The clips of a split: read annotations, probe durations where the clip rule needs them, plan, find the videos."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from flcache.cache import assign_shards, get_codec
from flcache.config import Config
from flcache.errors import DataError
from flcache.remote import DiskCache, default_folder
from flcache.videos import DecodePool, Video, VideoFolder, list_videos, needs_duration, plan_clips, probe_durations
from flcache.videos.annotations import split_lists
from flcache.videos.remote_path import Place, place

from .engine import decode_workers
from .progress import Progress

LISTED_MISSING = 5
_SHOWN_EVERY = 64


@dataclass(frozen=True)
class SplitClips:
    """The clips of one split, before shards are assigned."""

    split: str
    clips: pd.DataFrame
    folder: VideoFolder
    missing: tuple[Video, ...]
    """Annotated videos that are not on disk."""


def list_of(config: Config, split: str) -> Place:
    """The list of the videos of `split`. Raises ConfigError where it has none, or one that an unset variable names."""
    found = None if f"dataset.{split}" in config.unset else split_lists(config.dataset, disk_cache(config)).get(split)
    return found if found is not None else place(config.require(f"dataset.{split}"), disk_cache(config))


def video_root(config: Config) -> Place:
    """The folder of the videos. Raises ConfigError where it is not set."""
    return place(config.require("dataset.root"), disk_cache(config))


def disk_cache(config: Config) -> DiskCache:
    """Where copies of files at URLs are kept."""
    folder = config.cache.local_dir
    return DiskCache(Path(folder) if folder else default_folder(), config.cache.local_bytes)


def read_split(config: Config, split: str) -> SplitClips:
    """The clips of `split` and its missing videos. Raises DataError where too many are missing."""
    dataset = config.dataset
    annotations, root = list_of(config, split), video_root(config)
    videos = list_videos(annotations, dataset, split, disk_cache(config))
    folder = VideoFolder(root, (video.path for video in videos))
    missing = _missing(split, videos, folder)
    if len(missing) > dataset.max_missing_fraction * len(videos):
        raise DataError(
            f"{annotations}: {len(missing)} of {len(videos)} videos are missing below {dataset.root}, the first "
            f"expected at {folder.expected(missing[0].path)}; check dataset.root, or allow it with "
            f"dataset.max_missing_fraction={min(1.0, len(missing) / len(videos) + 0.005):.2f}"
        )
    clips = plan_clips(videos, config.clip, _probe(config, split, needs_duration(config.clip, videos), folder))
    return SplitClips(split, clips, folder, missing)


def open_pool(config: Config, arrays: Mapping[str, int] | None = None) -> DecodePool:
    """The configured pool of decoding processes, whose clips come with `arrays`."""
    timeout_s, max_bytes = config.encode.decode_timeout_s, config.clip.max_bytes
    return DecodePool(decode_workers(config), timeout_s, max_bytes=max_bytes, arrays=arrays)


def report_missing(splits: Sequence[SplitClips]) -> None:
    """Print to stderr the first missing videos of each split, and a notice of files whose names differ in case."""
    for split in splits:
        for video in split.missing[:LISTED_MISSING]:
            print(f"Missing video ({split.split}): {split.folder.expected(video.path)}", file=sys.stderr)
        if len(split.missing) > LISTED_MISSING:
            print(f"... and {len(split.missing) - LISTED_MISSING} more of {split.split}", file=sys.stderr)
        for annotated, taken in list(split.folder.other_case.items())[:1]:
            print(
                f"Notice ({split.split}): {len(split.folder.other_case)} files are taken though their names differ in "
                f"case from the annotation, such as {taken} for {annotated}",
                file=sys.stderr,
            )


def assign_split(
    config: Config, latent_shape: Sequence[int], split: SplitClips, *, by_video: bool = True
) -> pd.DataFrame:
    """The plan of a split, for latents of `latent_shape` (T, H, W, D): its clips in shard order."""
    clip_bytes = get_codec(config.cache.codec).clip_bytes(tuple(latent_shape))
    sizes = {"clip_bytes": clip_bytes, "shard_bytes": config.cache.shard_bytes, "seed": config.cache.seed}
    return assign_shards(split.clips, split.split, **sizes, by_video=by_video)


def _missing(split: str, videos: Sequence[Video], folder: VideoFolder) -> tuple[Video, ...]:
    missing: list[Video] = []
    with Progress(f"Looking for videos ({split})", len(videos), "videos") as progress:
        for number, video in enumerate(videos, 1):
            if folder.find(video.path) is None:
                missing.append(video)
            if number % _SHOWN_EVERY == 0 or number == len(videos) > _SHOWN_EVERY:
                progress.advance(count=number - progress.done)
    return tuple(missing)


def _probe(config: Config, split: str, videos: list[Video], folder: VideoFolder) -> dict[str, float]:
    """Seconds by video id, from the headers of those that are on disk."""
    files = {video.video_id: path for video in videos if (path := folder.find(video.path))}
    if not files:
        return {}
    title = f"Reading headers ({split})"
    with open_pool(config) as pool, Progress(title, len(files), "videos") as progress:
        return probe_durations(pool, files, on_header=lambda failed: progress.advance(failed=failed))
