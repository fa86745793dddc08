"""Encoding into the configured cache: its spec, its plan, and the shards that it lacks."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from flcache.cache import (
    CacheSpec,
    LatentCache,
    create_or_check,
    failure_groups,
    finalize_statistics,
    is_calibrated,
    remove_shard_leftovers,
    settle,
)
from flcache.cache.format.names import SPEC
from flcache.cache.format.spec import read_spec
from flcache.cache.storage import Location, open_store
from flcache.config import Config
from flcache.encoder import LatentVideoModel, pick_dtype
from flcache.engines import ClipFailed, EncodeJob, EncoderTimes, Event, ShardCommitted, calibrate, together
from flcache.engines.cores import available_cores
from flcache.errors import DataError
from flcache.videos import decode_planned

from .arrays import array_widths
from .clips import open_pool, video_root
from .encoder import encode_batch_size, hard_spec, load_configured_encoder, pick_device
from .engine import LOCAL, Engine, decode_workers
from .planning import OF_THE_ENCODER, FailedShards, MissingShards, Planning, calibration_clips, finish_planning
from .progress import Progress

SOFT_PACKAGES = ("flcache", "torch", "torchvision", "transformers", "decord", "av")


def encode_missing(
    location: Location,
    config: Config,
    planning: Planning,
    part: tuple[int, int] | None = None,
    *,
    retry_failed: bool = False,
    engine: Engine = LOCAL,
) -> EncoderTimes:
    """Encode and commit the shards without a commit; with `part=(i, n)` only every n-th shard from number i on.

    With `retry_failed` also the failed clips of committed shards, where the reason may have gone. Where spec and plan
    are there, the first clips are decoded while the encoder is loaded. Raises SpecMismatch if the cache is of other
    latents. Returns the times of the encoder.
    """

    @lru_cache(maxsize=1)
    def load_model() -> LatentVideoModel:
        model = load_configured_encoder(config, device=config.encode.device)
        open_cache(location, config, model, planning)
        return model

    if not _is_begun(location, planning):
        load_model()
        if not engine.is_in_process(config):
            load_model.cache_clear()  # makes room for those of other processes
    spec = read_spec(location)
    plan = finish_planning(planning, spec.latent_shape)
    job = encode_job(location, config, spec)
    settle(location)
    failed = FailedShards(planning, plan, part) if retry_failed else None
    missing = MissingShards(planning, plan, part)
    times = _encode(config, engine, job, missing, load_model)
    if failed is not None:
        times = together([times, _encode(config, engine, job, failed, load_model)])
    if not missing and not failed:
        load_model()  # compares the configuration with the cache also where there is nothing to do
    remove_shard_leftovers(location)
    finalize_statistics(location)
    return times


def _is_begun(location: Location, planning: Planning) -> bool:
    """Whether the cache has its spec and a plan of every split."""
    return open_store(location).exists(SPEC) and planning.is_done_for(read_spec(location).latent_shape)


def open_cache(location: Location, config: Config, model: LatentVideoModel, planning: Planning) -> CacheSpec:
    """The spec of the cache, written if absent. Raises SpecMismatch if the cache is of other latents."""
    versions = {name: _version(name) for name in SOFT_PACKAGES}
    soft = {
        "encoder": config.encoder.name,
        "device": model.device.type,
        "batch_size": encode_batch_size(config, model.latent_shape(config.clip.frames)),
        "versions": versions,
    }
    hard = hard_spec(config, model, array_widths(config))
    calibration = partial(_calibrate, config, hard, model, planning) if is_calibrated(hard) else None
    spec, changed = create_or_check(location, hard, soft, calibration)
    for difference in changed:
        print(f"Notice: {location}: {difference}; latents may differ in their last bits", file=sys.stderr)
    return spec


def _calibrate(config: Config, hard: dict[str, Any], model: LatentVideoModel, planning: Planning) -> dict[str, Any]:
    """The codec's calibration from the first training clips of the plan, a random sample since plans are shuffled."""
    folder, clips = calibration_clips(planning, tuple(hard["layout"]["shape"]))
    with open_pool(config) as pool, Progress("Calibrating", len(clips), "clips") as progress:
        return calibrate(
            hard,
            decode_planned(pool, folder, clips),
            model,
            batch_size=encode_batch_size(config, model.latent_shape(config.clip.frames)),
            on_clip=lambda failed: progress.advance(failed=failed),
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def encode_job(location: Location, config: Config, spec: CacheSpec) -> EncodeJob:
    """The job whose tasks know the files of their clips."""
    device = pick_device(config.encode.device)
    return EncodeJob(
        cache=location,
        video_root=video_root(config),
        other_case={},
        spec=spec,
        encoder=replace(config.encoder, dtype=pick_dtype(config.encoder.dtype, device)),
        context=config.encode.context,
        device=device,
        decode_workers=decode_workers(config),
        decode_timeout_s=config.encode.decode_timeout_s,
        max_clip_bytes=config.clip.max_bytes,
        batch_size=encode_batch_size(config, spec.encoder_shape),
        min_cosine=config.cache.min_cosine,
        compile=config.encode.compile,
    )


def _encode(
    config: Config,
    engine: Engine,
    job: EncodeJob,
    tasks: MissingShards | FailedShards,
    load_model: Callable[[], LatentVideoModel],
) -> EncoderTimes:
    if not len(tasks):
        return EncoderTimes()
    with Progress("Encoding", tasks.num_clips, "clips") as progress:

        def show(event: Event) -> None:
            if not isinstance(event, ShardCommitted):
                progress.advance(failed=isinstance(event, ClipFailed))
            elif event.by_another:
                for number in range(event.commit.clips + event.commit.failed):
                    progress.advance(failed=number < event.commit.failed)

        times = engine.run(config, job, tasks, show, load_model)
    print(times.advice(job.decode_workers, available_cores()), file=sys.stderr)
    return times


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
    if any(failure.reason not in OF_THE_ENCODER for failure in failures):
        print('  "flcache encode --retry-failed" tries those again whose files have come or were mended')
    attempted = len(cache) + len(failed)
    if len(failed) > config.encode.max_failed_fraction * attempted:
        raise DataError(
            f"{location}: {len(failed)} of {attempted} clips failed, encode.max_failed_fraction="
            f"{config.encode.max_failed_fraction} allows fewer; "
            f'"flcache inspect-cache --json {location}" lists them all'
        )
