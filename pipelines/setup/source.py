"""The configured source of latents: a cache, or videos that are encoded as they are read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pandas as pd
import torch
from rich.filesize import decimal

from flcache.batch import ChannelStatistics, LatentBatch
from flcache.cache import (
    TRAINING_SPLIT,
    CacheSpec,
    ChannelSums,
    EpochSampler,
    LatentCache,
    LatentLoader,
    array_statistics,
    channel_statistics,
    latent_differences,
    read_plan,
    read_spec,
    statistics_of,
    with_calibration,
)
from flcache.config import Config
from flcache.encoder import LatentVideoModel
from flcache.errors import CacheError, ConfigError, DataError
from flcache.leak import check_boundary, middle_boundary
from flcache.training import Source, VideoSource, WorldModel
from flcache.videos import DecodePool, PlannedClip, VideoFolder, planned_clips

from .arrays import array_widths
from .cache import cache_store
from .clips import assign_split, open_pool, read_split
from .encoder import earlier_forms, hard_spec, load_configured_encoder
from .running import as_trained

LIVE_STATISTICS_CLIPS = 64
"""Training clips that channel statistics are computed from where no cache has them."""


@dataclass(frozen=True)
class LatentSource:
    """Batches of one split, and what their latents are."""

    batches: Source
    hard: Mapping[str, Any]
    """The hashed part of the spec."""
    fingerprint: str
    latent_shape: tuple[int, int, int, int]
    """(T, H, W, D)"""
    seen_until: tuple[int, ...]
    context_steps: int
    leak: bool
    statistics: Callable[[], ChannelStatistics]
    """A function, since a live source may have to encode clips for them."""
    action_statistics: Callable[[], ChannelStatistics]
    """Of the `actions` of the training split."""
    encoder: LatentVideoModel | None
    """The encoder of the batches' frames; None where the batches hold latents."""
    precision: str
    """`training.precision`"""

    @property
    def num_actions(self) -> int | None:
        """Numbers of the actions of a step, if there are any."""
        return CacheSpec(dict(self.hard), {}).arrays.get("actions", (0, None))[1]

    def known_as(self, fingerprint: str) -> LatentSource:
        """This source with `fingerprint`, if that is its own in a form of earlier specs; else unchanged."""
        earlier = [CacheSpec(hard, {}).fingerprint for hard in earlier_forms(self.hard)]
        return replace(self, fingerprint=fingerprint) if fingerprint in earlier else self


@dataclass(frozen=True)
class Reading:
    """How a split is read."""

    split: str
    batch_size: int
    shuffle: bool
    rank: int = 0
    world_size: int = 1
    most: int | None = None
    """No more than this many clips, the first of the split; None is all."""

    def order(self, seed: int) -> dict[str, Any]:
        """Arguments of `EpochSampler` and `LatentLoader`. Only a shuffled reading leaves out an incomplete batch."""
        whole = {"drop_last": self.shuffle, "even_last": self.shuffle, "shuffle": self.shuffle}
        return {"batch_size": self.batch_size, "rank": self.rank, "world_size": self.world_size, "seed": seed, **whole}


class NoBatches:
    """The batches of a source that is only described."""

    def __iter__(self) -> Iterator[LatentBatch]:
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def describe_source(config: Config, *, device: str) -> LatentSource:
    """What the latents of a run are, without any of them: no video and no annotation needs to be there."""
    if config.training.source == "cache":
        return replace(_cached(config, Reading("train", 1, shuffle=False), device), batches=NoBatches())
    return _described_live(config, device)


@contextmanager
def open_source(
    config: Config, reading: Reading, *, device: str, beside: LatentSource | None = None
) -> Iterator[LatentSource]:
    """The source that `training.source` names; latents of a cache are delivered on `device`.

    `beside` is another reading of it, whose encoder is used instead of loading one again.
    """
    if config.training.source == "cache":
        yield _cached(config, reading, device)
        return
    with open_pool(config, array_widths(config)) as pool:
        if beside is None:
            yield _live(config, reading, pool, device)
        else:
            assert beside.encoder is not None, "both are readings of one source"
            spec = CacheSpec(dict(beside.hard), {})
            batches = _live_batches(config, reading, pool, beside.encoder, spec, beside.context_steps)
            yield replace(beside, batches=batches)


def latent_batches(model: WorldModel, source: LatentSource, device: str) -> Iterator[LatentBatch]:
    """One epoch of the source as latents, standardised with the statistics of `model`; a cache that has grown since
    training has others. Frames are encoded in the precision of training."""
    wanted = model.statistics
    found = source.statistics() if source.encoder is None else wanted
    unchanged = found is wanted or _equal(found, wanted)
    to_latents = as_trained(source.precision, device)(model.to_latents)
    for batch in source.batches:
        batch = to_latents(batch.to(device))
        if not unchanged:
            latents = wanted.standardise(found.restore(batch.latents))
            batch = replace(batch, latents=latents, targets=latents)
        yield batch


def known_videos(config: Config, split: str) -> dict[str, str] | None:
    """The video id of every clip of a cache's `split`; None for a live source, whose clip ids start with it."""
    if config.training.source != "cache":
        return None
    clips = source_clips(config, split)
    return dict(zip(clips["clip_id"].astype(str), clips["video_id"].astype(str), strict=True))


def source_clips(config: Config, split: str) -> pd.DataFrame:
    """The clips of `split`: rows of the cache's plan, or of the annotations for a live source."""
    if config.training.source != "cache":
        return read_split(config, split).clips
    plan = read_plan(cache_store(config))
    return plan[plan["split"] == split]


def _equal(one: ChannelStatistics, other: ChannelStatistics) -> bool:
    return torch.equal(one.mean.cpu(), other.mean.cpu()) and torch.equal(one.std.cpu(), other.std.cpu())


def _cached(config: Config, reading: Reading, device: str) -> LatentSource:
    cache = LatentCache(cache_store(config), reading.split)
    if reading.most is not None and reading.most < len(cache):
        cache = cache.select(ids=[cache.clip_id(index) for index in range(reading.most)])
    context_steps = _context_steps(config, cache.seen_until)
    order = reading.order(config.seed)
    if reading.shuffle:
        order["shuffle_block"] = config.training.shuffle_block
        _check_room(config, cache)
    loader = LatentLoader(cache, context_steps=context_steps, allow_leak=config.allow_leak, device=device, **order)
    return LatentSource(
        batches=loader,
        hard=cache.spec.hard,
        fingerprint=cache.fingerprint,
        latent_shape=cache.latent_shape,
        seen_until=cache.seen_until,
        context_steps=context_steps,
        leak=loader.leaks,
        statistics=cache.statistics,
        action_statistics=lambda: array_statistics(cache.split(TRAINING_SPLIT), "actions"),
        encoder=None,
        precision=config.training.precision,
    )


def _check_room(config: Config, cache: LatentCache) -> None:
    """A notice where clips in random order would be fetched anew for every batch."""
    num_bytes, room = sum(commit.tar_bytes for commit in cache.commits), config.cache.local_bytes
    if not cache.store.ahead_bytes or num_bytes <= room or config.training.shuffle_block:
        return
    block = max(1, room // 4 // cache.spec.codec.clip_bytes(cache.latent_shape))
    print(
        f"Notice: {cache.store}: {decimal(num_bytes)} of clips in random order, and cache.local_bytes is "
        f"{decimal(room)}: shards are fetched over and over; raise it, or set training.shuffle_block={block}",
        file=sys.stderr,
    )


def _live(config: Config, reading: Reading, pool: DecodePool, device: str) -> LatentSource:
    source = _described_live(config, device)
    model, latent_shape = source.encoder, source.latent_shape
    assert model is not None
    spec = CacheSpec(dict(source.hard), {})

    @cache
    def statistics() -> ChannelStatistics:
        cached = _known_cache(config, spec.fingerprint)
        return cached.statistics() if cached else _calibrate(config, model, pool, latent_shape)

    @cache
    def action_statistics() -> ChannelStatistics:
        if cached := _known_cache(config, spec.fingerprint):
            return array_statistics(cached.split(TRAINING_SPLIT), "actions")
        batches = _first_training_clips(config, model, pool, latent_shape)
        return statistics_of(batch.arrays["actions"][0][batch.valid[0]].numpy() for batch in batches)

    batches = _live_batches(config, reading, pool, model, spec, source.context_steps)
    return replace(source, batches=batches, statistics=statistics, action_statistics=action_statistics)


def _described_live(config: Config, device: str) -> LatentSource:
    model = load_configured_encoder(config, trainable=config.encoder_trainable, device=device)
    frames = config.clip.frames
    latent_shape, seen_until = model.latent_shape(frames), model.seen_until(frames)
    context_steps = _context_steps(config, seen_until)
    leak = check_boundary(seen_until, context_steps, allow_leak=config.allow_leak)
    spec = _live_spec(config, model)
    return LatentSource(
        batches=NoBatches(),
        hard=spec.hard,
        fingerprint=spec.fingerprint,
        latent_shape=latent_shape,
        seen_until=tuple(seen_until),
        context_steps=context_steps,
        leak=leak,
        statistics=_no_statistics,
        action_statistics=_no_statistics,
        encoder=model,
        precision=config.training.precision,
    )


def _no_statistics() -> ChannelStatistics:
    raise AssertionError("a source that is only described has no clips to take statistics of")


def _live_batches(
    config: Config, reading: Reading, pool: DecodePool, model: LatentVideoModel, spec: CacheSpec, context_steps: int
) -> VideoSource:
    clips, folder = _live_clips(config, reading.split, spec.latent_shape)
    clips = clips[: reading.most]
    return VideoSource(
        clips,
        folder,
        pool,
        EpochSampler(len(clips), **reading.order(config.seed)),
        context_steps=context_steps,
        tubelet_size=model.tubelet_size,
        max_failed_fraction=config.encode.max_failed_fraction if reading.most is None else 1.0,  # few say little
        nominal_times=spec.nominal_times,
        augment=config.training.augment if reading.shuffle else None,  # evaluation is on clips as they are
    )


def _live_clips(
    config: Config, split: str, latent_shape: tuple[int, int, int, int]
) -> tuple[list[PlannedClip], VideoFolder]:
    """The clips of `split` whose videos are on disk, in the order of a cache, and the folder of the videos."""
    found = read_split(config, split)
    clips = planned_clips(assign_split(config, latent_shape, found))
    return [clip for clip in clips if found.folder.find(clip.video)], found.folder


def _context_steps(config: Config, seen_until: Sequence[int]) -> int:
    return config.training.context_steps or middle_boundary(seen_until)


def _live_spec(config: Config, model: LatentVideoModel) -> CacheSpec:
    """The spec of the configured cache, if it holds these latents; else that of a new one."""
    hard = hard_spec(config, model, array_widths(config))
    if "keep" in hard:
        raise ConfigError(
            "encode.keep stores a part of the latents, and training.source=videos has no store: "
            "set encode.keep.pool=false and encode.keep.pca=null, or train with training.source=cache"
        )
    try:
        cache = read_spec(cache_store(config))
    except (CacheError, ConfigError):  # no cache there, or none configured
        return CacheSpec(hard, {})
    fresh = CacheSpec(with_calibration(hard, cache), {})
    return fresh if latent_differences(cache, fresh) else cache


def _known_cache(config: Config, fingerprint: str) -> LatentCache | None:
    """The configured cache, if it holds the same latents and has some of them."""
    try:
        cache = LatentCache(cache_store(config)) if config.cache.dir else None
        return cache if cache and cache.fingerprint == fingerprint and cache.statistics() else None
    except CacheError:
        return None


def _calibrate(
    config: Config, model: LatentVideoModel, pool: DecodePool, latent_shape: tuple[int, int, int, int]
) -> ChannelStatistics:
    """Channel statistics over the first training clips, encoded by `model`."""
    sums = ChannelSums(latent_shape[-1])
    for batch in _first_training_clips(config, model, pool, latent_shape):
        latents = model(batch.frames).detach().cpu().numpy()  # (1, T, H, W, D)
        sums.add(latents[0][batch.valid[0].numpy()])
    if not sums.positions:
        raise DataError("no training clip could be decoded, so there is nothing to train on; see the annotation files")
    return channel_statistics(sums.channels())


def _first_training_clips(
    config: Config, model: LatentVideoModel, pool: DecodePool, latent_shape: tuple[int, int, int, int]
) -> VideoSource:
    """Those that statistics are taken of, one a batch."""
    clips, folder = _live_clips(config, TRAINING_SPLIT, latent_shape)
    clips = clips[:LIVE_STATISTICS_CLIPS]
    sampler = EpochSampler(len(clips), batch_size=1, shuffle=False, drop_last=False)
    return VideoSource(
        clips, folder, pool, sampler, context_steps=1, tubelet_size=model.tubelet_size, max_failed_fraction=1.0
    )
