"""Parts of a cache, and several caches in one: deterministic, resumable, in the proportions asked for."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cache import make_cache

from flcache.cache import LatentCache, LatentLoader, Mixture, epoch_order, mixture_order
from flcache.errors import CacheError

SOURCES = ((10, 3.0), (25, 1.0), (5, 1.0))


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[LatentCache]:
    folder = tmp_path_factory.mktemp("caches")
    return [LatentCache(make_cache(folder / "one"), "train"), LatentCache(make_cache(folder / "two", num_val=9), "val")]


def ids(loaders: list[LatentLoader]) -> list[str]:
    """One epoch of all ranks."""
    ranks = [[batch.ids for batch in loader] for loader in loaders]
    return [name for step in range(max(map(len, ranks))) for rank in ranks if step < len(rank) for name in rank[step]]


def test_labels_ids_and_splits_choose_clips(caches: list[LatentCache]) -> None:
    cache = caches[0]
    jumping = cache.select(labels=["jump"])
    assert jumping.ids == [clip.clip_id for clip in cache if clip.label == "jump"] and 0 < len(jumping) < len(cache)
    wanted = {jumping.ids[2], jumping.ids[5]}
    chosen = jumping.select(ids=wanted)
    assert set(chosen.ids) == wanted == {clip.clip_id for clip in chosen}
    assert torch.equal(torch.from_numpy(chosen[1].latents), torch.from_numpy(jumping[5].latents))
    both = LatentCache(cache.path)
    assert both.select(ids=cache.ids).ids == cache.ids, "a split is a filter, too"
    loader = LatentLoader(jumping, batch_size=2, context_steps=2, drop_last=False)
    assert sorted(name for batch in loader for name in batch.ids) == sorted(jumping.ids)


def test_what_is_not_there_cannot_be_chosen(caches: list[LatentCache]) -> None:
    failed = caches[0].failures()[0].clip_id
    with pytest.raises(CacheError, match=f"1 of the wanted clip_ids are not here, such as {failed}"):
        caches[0].select(ids=[failed])
    with pytest.raises(CacheError, match="such as swim"):
        caches[0].select(labels=["swim"])
    assert not len(caches[0].select(ids=[]))


@pytest.mark.parametrize("block", [None, 4])
def test_mixture_keeps_proportions_and_uses_all_clips_alike(block: int | None) -> None:
    epochs = [mixture_order(SOURCES, seed=1, epoch=epoch, block=block) for epoch in range(50)]
    starts = np.array([10, 35, 40])
    for order in epochs:
        assert Counter(np.searchsorted(starts, order, side="right").tolist()) == {0: 24, 1: 8, 2: 8}
    uses = np.bincount(np.concatenate(epochs), minlength=40)
    for part in (uses[:10], uses[10:35], uses[35:]):
        assert part.max() - part.min() <= 1
    assert np.array_equal(epochs[3], mixture_order(SOURCES, seed=1, epoch=3, block=block))
    assert not np.array_equal(epochs[3], mixture_order(SOURCES, seed=2, epoch=3, block=block))


def test_mixture_of_one_is_its_epochs() -> None:
    for epoch in range(3):
        one = mixture_order([(10, 2.0)], seed=0, epoch=epoch)
        assert one.tolist() == epoch_order(10, seed=0, epoch=epoch).tolist()


@pytest.mark.parametrize(("before", "after"), list(product((1, 2, 3), repeat=2)))
def test_mixture_resumes_on_any_ranks(caches: list[LatentCache], before: int, after: int) -> None:
    mixture = Mixture(caches, [1, 3])

    def ranks(world_size: int) -> list[LatentLoader]:
        options = {"batch_size": 2, "context_steps": 2, "drop_last": False, "world_size": world_size}
        return [LatentLoader(mixture, rank=rank, **options) for rank in range(world_size)]

    whole = ids(ranks(1))
    saving = ranks(before)[0]
    for step, _ in enumerate(saving, start=1):
        state, samples = json.loads(json.dumps(saving.state_dict())), step * 2 * before
        if samples >= len(whole):
            break
        resumed = ranks(after)
        for loader in resumed:
            loader.load_state_dict(state)
        assert ids(resumed) == whole[samples:]


def test_every_clip_of_a_mixture_is_its_own_cache_s(caches: list[LatentCache]) -> None:
    for batch in LatentLoader(Mixture(caches, [1, 1]), batch_size=5, context_steps=2):
        for clip_id, latents in zip(batch.ids, batch.latents, strict=True):
            cache = caches[clip_id.startswith("val")]
            raw = torch.from_numpy(cache[cache.ids.index(clip_id)].latents)
            torch.testing.assert_close(latents, cache.statistics().standardise(raw), rtol=0, atol=2e-6)


def test_what_does_not_mix_is_refused(caches: list[LatentCache], tmp_path: Path) -> None:
    other = LatentCache(make_cache(tmp_path, codec="float32"), "train")
    for mixed, weights in (
        ([caches[0], other], [1, 1]),
        (caches, [1]),
        ([], []),
        (caches, [1, 0]),
        (caches, [1, float("inf")]),
        ([caches[0].select(ids=[])], [1]),
    ):
        with pytest.raises(CacheError):
            Mixture(mixed, weights)
    state = LatentLoader(Mixture(caches, [1, 1]), batch_size=1, context_steps=2).state_dict()
    with pytest.raises(CacheError, match="weights"):
        LatentLoader(Mixture(caches, [1, 2]), batch_size=1, context_steps=2).load_state_dict(state)
