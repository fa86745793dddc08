"""What several processes find is what one finds, to the last bit: sums do not depend on the order of additions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.evaluation.metrics import ChannelVariance
from flcache.evaluation.processes import GRID, add_exactly
from flcache.evaluation.ridge import RidgeMoments
from flcache.evaluation.spread import SpreadMoments
from flcache.sampling.order import rank_share

T, H, W, D = 8, 2, 3, 16


@dataclass(frozen=True)
class Sums:
    """Of random batches in some order."""

    spread: dict[tuple[str, str], Tensor]
    ridge: dict[tuple[bool, int, str], Tensor]
    variance: float


def sums(order: range) -> Sums:
    spread, ridge, variance = SpreadMoments(), RidgeMoments(2, 3), ChannelVariance()
    for number in order:
        generator = torch.Generator().manual_seed(number)
        latents = torch.randn(3, T, H, W, D, generator=generator) * 10 ** torch.randn(D, generator=generator)
        valid, times = torch.ones(3, T, dtype=torch.bool), torch.arange(T).expand(3, T).float()
        batch = LatentBatch(latents, latents, times, valid, ("a", "b", "c"), 4)
        spread.add(batch.target, batch.target, batch.target_valid, first=3 * number)
        ridge.add(batch, range(1, T), number)
        variance.add(batch.target)
    return Sums(spread.sums(), ridge.sums(), variance.value())


def test_every_order_of_batches_has_the_same_sums() -> None:
    forwards, backwards = sums(range(12)), sums(range(11, -1, -1))
    for name in ("spread", "ridge"):
        found, other = getattr(forwards, name), getattr(backwards, name)
        assert found.keys() == other.keys() and found
        assert all(torch.equal(found[key], other[key]) for key in found)
    assert forwards.variance == backwards.variance


def test_a_sum_is_off_by_half_a_step_of_the_grid_at_most() -> None:
    values = torch.randn(50, 100, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(100, dtype=torch.float64)
    for row in values:
        add_exactly(total, row)
    assert (total - values.double().sum(0)).abs().max() <= 50 * GRID / 2


def test_shares_without_an_even_last_batch_are_the_batches_of_a_single_rank() -> None:
    order = torch.arange(23).numpy()
    single = [batch.tolist() for batch in (order[first:end] for first, end in pairwise([0, 4, 8, 12, 16, 20, 24]))]
    for ranks in (1, 2, 3, 5):
        shares = [
            rank_share(order, start=start, batch_size=4, rank=rank, world_size=ranks, even_last=False).tolist()
            for start in range(0, 23, 4 * ranks)
            for rank in range(ranks)
        ]
        assert [share for share in shares if share] == single
