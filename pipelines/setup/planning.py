"""The plan of the configured cache: read where it fits the annotations and settings, made where it does not.

What fits is known by digests that the plan keeps, and costs neither the annotations' rows nor a look at any video.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import pyarrow.compute as pc

from flcache.cache import (
    CODEC_CALIBRATION_CLIPS,
    TRAINING_SPLIT,
    Commit,
    Failure,
    PlanTable,
    add_to_plan,
    committed_shards,
    get_codec,
    plan_sources,
    read_failures,
)
from flcache.cache.format.commit import read_commit
from flcache.cache.format.names import PLAN
from flcache.cache.storage import Location, open_store
from flcache.config import Config
from flcache.engines import ShardTask
from flcache.errors import DataError
from flcache.videos import PlannedClip, VideoFolder, planned_clips
from flcache.videos.annotations import is_held_out, leads_out, list_digest, split_lists
from flcache.videos.forms.text import file_digest
from flcache.videos.remote_path import look_again, place

from .clips import SplitClips, assign_split, disk_cache, list_of, read_split, report_missing, video_root

OF_THE_ENCODER = ("not finite", "out of range")
"""Reasons of failures that come again with the same encoder."""
PLANNED_BY = 1
"""Raised where the same annotations and settings give other clips than before."""


@dataclass
class Planning:
    """What the splits of a configuration are planned from, and the clips of those that have no fitting plan yet."""

    location: Location
    config: Config
    sources: dict[str, dict[str, Any]]
    """By split, without the size of a clip, which only the encoder tells."""
    fresh: dict[str, SplitClips] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.sources)

    def sources_of(self, latent_shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
        """The sources by split, for clips whose latents are of `latent_shape` (T, H, W, D)."""
        clip_bytes = get_codec(self.config.cache.codec).clip_bytes(latent_shape)
        return {split: {**found, "clip_bytes": clip_bytes} for split, found in self.sources.items()}

    def is_done_for(self, latent_shape: tuple[int, ...]) -> bool:
        """Whether the plan on disk has every split, for such latents."""
        known = plan_sources(self.location)
        return all(known.get(split) == found for split, found in self.sources_of(latent_shape).items())


def begin_planning(location: Location, config: Config) -> Planning:
    """Read the annotations of every split without a fitting plan, and print which of their videos are missing.

    Raises ConfigError if there is no list of `train`, DataError where too many videos are missing.
    """
    look_again()
    list_of(config, TRAINING_SPLIT)
    sources = {split: _sources(config, split) for split in split_lists(config.dataset, disk_cache(config))}
    known = {split: {**found, "clip_bytes": None} for split, found in plan_sources(location).items()}
    planning = Planning(location, config, sources)
    for split in planning.splits:
        if known.get(split) != {**sources[split], "clip_bytes": None}:
            planning.fresh[split] = read_split(config, split)
    report_missing(list(planning.fresh.values()))
    return planning


def finish_planning(planning: Planning, latent_shape: tuple[int, ...]) -> PlanTable:
    """The plan on disk, with every split. Raises CacheError where a split there is another, saying what has changed."""
    config, store = planning.config, open_store(planning.location)
    sources, known = planning.sources_of(latent_shape), plan_sources(store)
    for split in planning.splits:
        if split not in planning.fresh and known.get(split) != sources[split]:
            planning.fresh[split] = read_split(config, split)
    if fresh := planning.fresh.values():
        plan, earlier = (
            pd.concat([assign_split(config, latent_shape, split, by_video=by_video) for split in fresh])
            for by_video in (True, False)
        )
        given = {split.split: sources[split.split] for split in fresh}
        add_to_plan(store, plan, given, earlier=earlier)
    store.remove_leftovers(PLAN)
    planning.fresh.clear()
    return PlanTable(store)


def calibration_clips(planning: Planning, latent_shape: tuple[int, ...]) -> tuple[VideoFolder, list[PlannedClip]]:
    """The first training clips of the plan, which are a random sample of them, and the folder of their videos."""
    config, store = planning.config, open_store(planning.location)
    if TRAINING_SPLIT in planning.fresh and not (store.exists(PLAN) and _first_clips(PlanTable(store))):
        split = planning.fresh[TRAINING_SPLIT]
        plan = assign_split(config, latent_shape, split)[:CODEC_CALIBRATION_CLIPS]
        return split.folder, planned_clips(plan)
    table = PlanTable(store)
    return _folder(config, table), planned_clips(_first_clips(table))


def _first_clips(table: PlanTable) -> list[dict[str, Any]]:
    shards = {shard: place for (split, shard), place in table.first_rows.items() if split == TRAINING_SPLIT}
    if not shards:
        return []
    return table.records(shards[0][0], min(CODEC_CALIBRATION_CLIPS, sum(count for _, count in shards.values())))


class MissingShards:
    """A task for each planned shard of the configuration's splits that has no commit, made when it is asked for.

    With `part=(i, n)` only every n-th shard from number i on.
    """

    def __init__(self, planning: Planning, table: PlanTable, part: tuple[int, int] | None = None) -> None:
        index, count = part or (0, 1)
        planned = [shard for shard in table.first_rows if shard[0] in planning.splits][index::count]
        committed = set(committed_shards(planning.location))
        self._shards = [shard for shard in planned if shard not in committed]
        self._maker = TaskMaker(planning.config, table)
        self.num_clips = sum(table.first_rows[shard][1] for shard in self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[ShardTask]:
        return (self._maker.task(split, shard) for split, shard in self._shards)


class FailedShards:
    """A task for each committed shard with failures whose reason may have gone; only of the clips that have them.

    Those are all but values that the encoder gave, and videos that are still not there. `part` as in MissingShards.
    """

    def __init__(self, planning: Planning, table: PlanTable, part: tuple[int, int] | None = None) -> None:
        index, count = part or (0, 1)
        planned = [shard for shard in table.first_rows if shard[0] in planning.splits][index::count]
        store, maker = open_store(planning.location), TaskMaker(planning.config, table)
        committed = set(committed_shards(store))
        failed = [read_commit(store, *shard) for shard in planned if shard in committed]
        found = (maker.retry(commit, read_failures(store, commit)) for commit in failed if commit.failed)
        self._tasks = [task for task in found if task.clips]
        self.num_clips = sum(len(task.clips) for task in self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[ShardTask]:
        return iter(self._tasks)


class TaskMaker:
    """Makes the tasks of single shards; looks for the videos of those alone."""

    def __init__(self, config: Config, table: PlanTable) -> None:
        self._config, self._table = config, table
        self._root = video_root(config)
        self._folder = _folder(config, table)

    def task(self, split: str, shard: int) -> ShardTask:
        """All clips of a shard, each with its file if that is there."""
        clips = planned_clips(self._table.records(*self._table.first_rows[split, shard]))
        return ShardTask(split, shard, tuple(self._found(clip) for clip in clips))

    def retry(self, commit: Commit, failures: Sequence[Failure]) -> ShardTask:
        """The clips of a shard that failed and may not fail again."""
        reasons = {failure.slot: failure.reason for failure in failures}
        clips = [clip for clip in self.task(commit.split, commit.shard).clips if clip.slot in reasons]
        wanted = [
            clip
            for clip in clips
            if reasons[clip.slot] not in OF_THE_ENCODER and (clip.file or reasons[clip.slot] != "no file")
        ]
        return ShardTask(commit.split, commit.shard, tuple(wanted), retry=True)

    def _found(self, clip: PlannedClip) -> PlannedClip:
        if not self._config.dataset.allow_outside and leads_out(clip.video, self._root):
            raise DataError(
                f"{self._config.cache.dir}/{PLAN}: the video {clip.video!r} leads out of dataset.root; give "
                "dataset.allow_outside=true if you trust this plan"
            )
        return replace(clip, file=self._folder.find(clip.video))


def _folder(config: Config, table: PlanTable) -> VideoFolder:
    return VideoFolder(video_root(config), _PlannedVideos(table))


class _PlannedVideos:
    """The annotated paths of a plan, as far as it is asked whether one is among them."""

    def __init__(self, table: PlanTable) -> None:
        self._table = table

    def __contains__(self, video: object) -> bool:
        return bool(pc.index(self._table.column("video"), value=video).as_py() >= 0)


def _sources(config: Config, split: str) -> dict[str, Any]:
    """Everything that the clips of a split and their shards follow from, but the size of a clip."""
    dataset, disk = config.dataset, disk_cache(config)
    labels = file_digest(place(dataset.labels, disk)) if dataset.labels else None
    held_out = {"val_fraction": dataset.val_fraction} if is_held_out(dataset, disk) else {}
    return {
        "annotations": list_digest(list_of(config, split), dataset, disk),
        "labels": labels,
        "allow_outside": dataset.allow_outside,
        "clip": config.clip.as_dict(),
        "shard_bytes": config.cache.shard_bytes,
        "seed": config.cache.seed,
        "planned_by": PLANNED_BY,
        **held_out,
    }
