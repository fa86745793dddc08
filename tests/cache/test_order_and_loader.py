"""The order of an epoch is one sequence, whoever reads it and wherever it is taken up again."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_cache import clip_table, hard_spec, make_cache, write_shard

from flcache.cache import (
    LatentCache,
    LatentLoader,
    Mixture,
    assign_shards,
    create_or_check,
    epoch_order,
    rank_share,
    write_plan,
)
from flcache.errors import CacheError, DamagedError, LeakError

WORLD_SIZES = (1, 2, 3, 4, 8)
THREADS = (1, 2, 4)
CLIPS = 22
"""Committed training clips of the small cache."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> LatentCache:
    return LatentCache(make_cache(tmp_path_factory.mktemp("loader")), "train")


def loaders(
    cache: LatentCache | Mixture, world_size: int, *, batch_size: int = 2, drop_last: bool, threads: int = 2
) -> list[LatentLoader]:
    options = {"batch_size": batch_size, "context_steps": 2, "drop_last": drop_last, "threads": threads}
    return [LatentLoader(cache, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def epoch_ids(ranks: list[LatentLoader]) -> list[str]:
    """The ids of the rest of the epoch: of every global batch, the ranks' shares one after the other."""
    batches = [[batch.ids for batch in loader] for loader in ranks]
    most = max(len(rank) for rank in batches)
    return [name for step in range(most) for rank in batches if step < len(rank) for name in rank[step]]


def planned_ids(cache: LatentCache, *, epoch: int = 0) -> list[str]:
    return [cache.clip_id(index) for index in epoch_order(len(cache), seed=0, epoch=epoch).tolist()]


def whole_epoch(cache: LatentCache, epoch: int, world_size: int, drop_last: bool) -> list[str]:
    return planned_ids(cache, epoch=epoch)[: CLIPS - CLIPS % (2 * world_size) if drop_last else CLIPS]


@pytest.mark.parametrize("block", [None, 1, 7, 1000])
@pytest.mark.parametrize("n", [0, 1, 2, 100, 101])
def test_order_is_a_permutation_of_seed_and_epoch(n: int, block: int | None) -> None:
    order = epoch_order(n, seed=3, epoch=5, block=block)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, epoch_order(n, seed=3, epoch=5, block=block))
    if n >= 100:
        for seed, epoch in ((4, 5), (3, 6), (5, 3)):
            assert not np.array_equal(order, epoch_order(n, seed=seed, epoch=epoch, block=block))


def test_order_stays_the_same_for_ever() -> None:
    assert epoch_order(8, seed=0, epoch=0).tolist() == [1, 3, 2, 4, 7, 0, 6, 5]
    assert epoch_order(8, seed=0, epoch=0, block=3).tolist() == [3, 4, 5, 1, 2, 0, 7, 6]


def test_block_keeps_reading_local() -> None:
    runs = epoch_order(100, seed=0, epoch=0, block=8) // 8
    assert np.count_nonzero(np.diff(runs)) == 12, "every run is read to its end before the next"
    assert runs.tolist() != sorted(runs.tolist())


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_share_the_order(world_size: int) -> None:
    order = epoch_order(29, seed=0, epoch=0)
    for start in range(29):
        shares = [
            rank_share(order, start=start, batch_size=3, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        assert np.concatenate(shares).tolist() == order[start : start + 3 * world_size].tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("world_size", "threads", "drop_last"), list(product(WORLD_SIZES, THREADS, (True, False))))
def test_any_ranks_and_threads_replay_the_order(
    cache: LatentCache, world_size: int, threads: int, drop_last: bool
) -> None:
    ranks = loaders(cache, world_size, drop_last=drop_last, threads=threads)
    for epoch in range(2):
        lengths = [sum(1 for _ in loader) for loader in loaders(cache, world_size, drop_last=drop_last)]
        assert lengths == [len(loader) for loader in ranks]
        assert epoch_ids(ranks) == whole_epoch(cache, epoch, world_size, drop_last)
        assert {loader.state_dict()["epoch"] for loader in ranks} == {epoch + 1}


def boundaries(
    cache: LatentCache, world_size: int, *, drop_last: bool, threads: int
) -> list[tuple[dict[str, Any], int]]:
    """The state after every batch of an epoch, through JSON, and the samples of all ranks until there."""
    loader = loaders(cache, world_size, drop_last=drop_last, threads=threads)[0]
    return [
        (json.loads(json.dumps(loader.state_dict())), min(step * 2 * world_size, CLIPS))
        for step, _ in enumerate(loader, start=1)
    ]


@pytest.mark.parametrize(
    ("before", "after", "threads", "drop_last"), list(product(WORLD_SIZES, WORLD_SIZES, THREADS, (True, False)))
)
def test_resume_at_every_batch_boundary(
    cache: LatentCache, before: int, after: int, threads: int, drop_last: bool
) -> None:
    states = boundaries(cache, before, drop_last=drop_last, threads=threads)
    expected = planned_ids(cache)
    for state, samples in states[:-1]:
        resumed = loaders(cache, after, drop_last=drop_last, threads=threads)
        for loader in resumed:
            loader.load_state_dict(state)
        rest = CLIPS - samples
        kept = rest - rest % (2 * after) if drop_last else rest
        rest_of_epoch = expected[samples : samples + kept] or whole_epoch(cache, 1, after, drop_last)
        assert epoch_ids(resumed) == rest_of_epoch
    assert states[-1][0]["epoch"] == 1 and states[-1][0]["samples"] == 0


def test_batch_is_the_standardised_clips(cache: LatentCache) -> None:
    statistics = cache.statistics()
    numbers = {clip_id: number for number, clip_id in enumerate(cache.ids)}
    for batch in LatentLoader(cache, batch_size=3, context_steps=2, drop_last=False):
        clips = [cache[numbers[clip_id]] for clip_id in batch.ids]
        raw = torch.stack([torch.from_numpy(clip.latents) for clip in clips])
        torch.testing.assert_close(batch.latents, statistics.standardise(raw), rtol=0, atol=2e-6)
        assert batch.targets is batch.latents
        assert batch.times.tolist() == [clip.times.tolist() for clip in clips]
        assert batch.valid.tolist() == [clip.valid.tolist() for clip in clips]
        assert batch.context.shape == (len(clips), 2, 2, 2, 6) and batch.latents.dtype == torch.float32


def test_some_steps(cache: LatentCache) -> None:
    whole = next(iter(LatentLoader(cache, batch_size=4, context_steps=2)))
    part = next(iter(LatentLoader(cache, batch_size=4, context_steps=1, steps=(1, 3))))
    assert part.ids == whole.ids
    assert torch.equal(part.latents, whole.latents[:, 1:3]) and torch.equal(part.times, whole.times[:, 1:3])


def test_leaking_context_is_refused(tmp_path: Path) -> None:
    spec, _ = create_or_check(tmp_path, hard_spec(seen_until=[1, 1, 3, 3]), {})
    clip_bytes = spec.codec.clip_bytes(spec.latent_shape)
    options = {"clip_bytes": clip_bytes, "shard_bytes": 10 * clip_bytes, "seed": 0}
    plan = write_plan(tmp_path, assign_shards(clip_table(4), "train", **options))
    write_shard(tmp_path, spec, "train", 0, plan)
    cache = LatentCache(tmp_path)
    assert not LatentLoader(cache, batch_size=1, context_steps=2).leaks
    with pytest.raises(LeakError):
        LatentLoader(cache, batch_size=1, context_steps=1)
    with pytest.raises(LeakError):
        LatentLoader(cache, batch_size=1, context_steps=1, steps=(2, 4))
    assert LatentLoader(cache, batch_size=1, context_steps=1, allow_leak=True).leaks


def test_too_few_clips_for_a_batch(cache: LatentCache) -> None:
    with pytest.raises(CacheError, match="22 clips are too few for one batch of 24"):
        LatentLoader(cache, batch_size=12, context_steps=2, world_size=2)
    assert len(LatentLoader(cache, batch_size=12, context_steps=2, world_size=2, drop_last=False)) == 1


def test_state_of_another_cache_is_refused(cache: LatentCache) -> None:
    loader = LatentLoader(cache, batch_size=2, context_steps=2)
    with pytest.raises(CacheError, match="22 clips, 21 when the run was saved"):
        loader.load_state_dict(loader.state_dict() | {"clips": 21})


def test_tar_cut_while_reading_is_damage(tmp_path: Path) -> None:
    cache = LatentCache(make_cache(tmp_path), "train")
    loader = LatentLoader(cache, batch_size=4, context_steps=2, shuffle=False)
    batches = iter(loader)
    next(batches)
    with (tmp_path / "shards" / "train-000000.tar").open("r+b") as tar:
        tar.truncate(5000)
    with pytest.raises(DamagedError, match=r"train-000000\.tar: ends in the middle of slot"):
        cache[1]
