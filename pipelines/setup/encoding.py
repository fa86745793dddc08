"""Encoding into the configured cache: its spec, its plan, and the shards that it lacks."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from flcache.cache import (
    CODEC_CALIBRATION_CLIPS,
    TRAINING_SPLIT,
    CacheSpec,
    LatentCache,
    create_or_check,
    failure_groups,
    finalize_statistics,
    is_calibrated,
    is_committed,
    remove_shard_leftovers,
    write_plan,
)
from flcache.cache.storage import Location
from flcache.config import Config
from flcache.encoder import LatentVideoModel
from flcache.engines import ClipFailed, EncodeJob, Event, ShardCommitted, ShardTask, calibrate
from flcache.engines.cores import available_cores
from flcache.errors import ConfigError, DataError
from flcache.videos import decode_planned, planned_clips

from .clips import SplitClips, assign_split, open_pool
from .encoder import hard_spec
from .engine import LOCAL, Engine, decode_workers
from .progress import Progress

SOFT_PACKAGES = ("flcache", "torch", "torchvision", "transformers", "decord", "av")


def encode_missing(
    location: Location,
    config: Config,
    model: LatentVideoModel,
    splits: Sequence[SplitClips],
    part: tuple[int, int] | None = None,
    engine: Engine = LOCAL,
) -> None:
    """Encode and commit the shards without a commit; with `part=(i, n)` only every n-th shard from number i on."""
    spec = open_cache(location, config, model, splits)
    plans = [assign_split(config, spec.latent_shape, split) for split in splits]
    plan = write_plan(location, pd.concat(plans, ignore_index=True))
    job = _job(location, config, spec, model, splits)
    _encode(config, engine, job, _pending(location, plan, splits, part), model)
    remove_shard_leftovers(location)
    finalize_statistics(location)


def open_cache(location: Location, config: Config, model: LatentVideoModel, splits: Sequence[SplitClips]) -> CacheSpec:
    """The spec of the cache, written if absent. Raises SpecMismatch if the cache is of other latents."""
    versions = {name: _version(name) for name in SOFT_PACKAGES}
    soft = {
        "encoder": config.encoder.name,
        "device": model.device.type,
        "batch_size": config.encode.batch_size,
        "versions": versions,
    }
    hard = hard_spec(config, model)
    calibration = partial(_calibrate, config, hard, model, splits) if is_calibrated(hard) else None
    spec, changed = create_or_check(location, hard, soft, calibration)
    for difference in changed:
        print(f"Notice: {location}: {difference}; latents may differ in their last bits", file=sys.stderr)
    return spec


def _calibrate(
    config: Config, hard: dict[str, Any], model: LatentVideoModel, splits: Sequence[SplitClips]
) -> dict[str, Any]:
    """The codec's calibration from the first training clips of the plan, a random sample since plans are shuffled."""
    split = next((split for split in splits if split.split == TRAINING_SPLIT), None)
    if split is None:
        raise ConfigError(
            f"dataset.train is not set, and {config.cache.codec} is calibrated on training clips: "
            "give dataset.train, or choose cache.codec=float16 and no encode.keep.pca"
        )
    sample = assign_split(config, hard["layout"]["shape"], split)[:CODEC_CALIBRATION_CLIPS]
    clips, options = planned_clips(sample), config.encode
    with open_pool(config) as pool, Progress("Calibrating", len(clips), "clips") as progress:
        return calibrate(
            hard,
            decode_planned(pool, split.folder, clips),
            model,
            batch_size=options.batch_size,
            on_clip=lambda failed: progress.advance(failed=failed),
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pending(
    location: Location, plan: pd.DataFrame, splits: Sequence[SplitClips], part: tuple[int, int] | None
) -> list[ShardTask]:
    """The shards without a commit, in plan order; `part` as in `encode_missing`."""
    index, count = part or (0, 1)
    wanted = plan[plan["split"].isin([split.split for split in splits])]
    shards = [rows for _, rows in wanted.groupby(["split", "shard"])][index::count]
    named = [(str(rows["split"].iloc[0]), int(rows["shard"].iloc[0]), rows) for rows in shards]
    return [
        ShardTask(split, shard, tuple(planned_clips(rows)))
        for split, shard, rows in named
        if not is_committed(location, split, shard)
    ]


def _job(
    location: Location, config: Config, spec: CacheSpec, model: LatentVideoModel, splits: Sequence[SplitClips]
) -> EncodeJob:
    return EncodeJob(
        cache=location,
        video_root=Path(config.require("dataset.root")),
        other_case={annotated: path for split in splits for annotated, path in split.folder.other_case.items()},
        spec=spec,
        encoder=config.encoder,
        context=config.encode.context,
        device=str(model.device),
        decode_workers=decode_workers(config),
        decode_timeout_s=config.encode.decode_timeout_s,
        max_clip_bytes=config.clip.max_bytes,
        batch_size=config.encode.batch_size,
        min_cosine=config.cache.min_cosine,
    )


def _encode(
    config: Config, engine: Engine, job: EncodeJob, tasks: Sequence[ShardTask], model: LatentVideoModel
) -> None:
    clips = sum(len(task.clips) for task in tasks)
    if not clips:
        return
    with Progress("Encoding", clips, "clips") as progress:

        def show(event: Event) -> None:
            if not isinstance(event, ShardCommitted):
                progress.advance(failed=isinstance(event, ClipFailed))
            elif event.by_another:
                for number in range(event.commit.clips + event.commit.failed):
                    progress.advance(failed=number < event.commit.failed)

        times = engine.run(config, job, tasks, show, model)
    print(times.advice(job.decode_workers, available_cores()), file=sys.stderr)


def report_encoding(location: Location, config: Config) -> None:
    """Print what the cache holds. Raises DataError if more clips failed than the configuration allows."""
    cache = LatentCache(location)
    failures = cache.failures()
    failed = [failure for failure in failures if failure.stage != "find"]
    for split, progress in cache.progress().items():
        print(
            f"{location}: {split}: {progress.clips} clips of {progress.planned_clips} cached, {progress.failed} "
            f"failed or missing, {progress.committed_shards} of {progress.planned_shards} shards"
        )
    for group in failure_groups(failures):
        print(f"  {group}")
    attempted = len(cache) + len(failed)
    if len(failed) > config.encode.max_failed_fraction * attempted:
        raise DataError(
            f"{location}: {len(failed)} of {attempted} clips failed, encode.max_failed_fraction="
            f"{config.encode.max_failed_fraction} allows fewer; "
            f'"flcache inspect-cache --json {location}" lists them all'
        )
