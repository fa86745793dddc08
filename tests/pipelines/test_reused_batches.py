"""A loader uses the memory of its batches again: whoever keeps something of a batch must have copied it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from flcache.batch import LatentBatch
from flcache.cache import LatentCache, LatentLoader
from flcache.config import load_config
from flcache.evaluation import copy_last, evaluate, fit_baselines
from flcache.pipelines.report.player import roll_out


class Batches:
    """The training clips of a cache, two at a time, in memory that is used again or of their own."""

    def __init__(self, config: Path, *, copy: bool) -> None:
        self._cache, self._copy = LatentCache(str(load_config(config).cache.dir), "train"), copy
        self.seen_until = self._cache.seen_until

    def __iter__(self) -> Iterator[LatentBatch]:
        return iter(LatentLoader(self._cache, batch_size=2, context_steps=2, shuffle=False, copy=self._copy))


@pytest.fixture
def reused(encoded: Path) -> Batches:
    return Batches(encoded, copy=False)


@pytest.fixture
def own(encoded: Path) -> Batches:
    return Batches(encoded, copy=True)


def test_memory_is_used_again(reused: Batches, own: Batches) -> None:
    assert len({batch.latents.data_ptr() for batch in reused}) < len(list(own)) // 2


def test_evaluation(reused: Batches, own: Batches) -> None:
    found = [
        evaluate(
            copy_last,
            batches,
            seen_until=batches.seen_until,
            fingerprint="",
            baselines=fit_baselines(batches, seen_until=batches.seen_until, ridge_steps=2),
        ).to_json()
        for batches in (reused, own)
    ]
    assert found[0] == found[1]
    assert found[0]["horizons"][0]["retrieval"]["copy_last"]["at_1"] > 0.5, "copies are nearest to what they copy"


def test_rolled_out_clips(reused: Batches, own: Batches) -> None:
    rolled = [[roll_out(copy_last, batch, row) for batch in batches for row in range(2)] for batches in (reused, own)]
    assert len(rolled[0]) == 24
    for one, other in zip(*rolled, strict=True):
        for field in fields(one):
            first, second = getattr(one, field.name), getattr(other, field.name)
            if isinstance(first, torch.Tensor | np.ndarray):
                assert np.array_equal(first, second), (one.clip_id, field.name)
            else:
                assert first == second
