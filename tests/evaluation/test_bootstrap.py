"""Intervals: they cover the truth as often as they say, are paired, repeat, and make no width out of rounding."""

from __future__ import annotations

import math

import pytest
import torch

from flcache.evaluation.bootstrap import Interval, ratio_intervals


def skewed(*shape: int, seed: int) -> torch.Tensor:
    """Errors as clips have them: positive, a few large; mean 1 (a gamma distribution of shape 2)."""
    generator = torch.Generator().manual_seed(seed)
    return -torch.rand(2, *shape, generator=generator, dtype=torch.float64).log().mean(0)


@pytest.mark.parametrize("kind", ["mean", "skill"])
def test_intervals_cover_the_truth_at_93_to_97_percent(kind: str) -> None:
    """1,000 experiments of 64 clips at a time, each column one of them; errors and baselines are correlated."""
    baseline = skewed(64, 1000, seed=0)
    error = 0.5 * baseline * skewed(64, 1000, seed=1)
    opponents = baseline if kind == "skill" else torch.ones_like(error)
    found = ratio_intervals(error, opponents, resamples=1000)
    covered = sum(interval.low <= 0.5 <= interval.high for interval in found) / len(found)
    assert 0.93 <= covered <= 0.97, covered


def test_the_same_clips_give_the_same_interval_whatever_stands_beside_them() -> None:
    error, baseline = skewed(20, 3, seed=2), skewed(20, 3, seed=3)
    whole = ratio_intervals(error, baseline)
    assert ratio_intervals(error[:, 1:2], baseline[:, 1:2])[0].low == pytest.approx(whole[1].low, rel=1e-9)
    assert ratio_intervals(error, baseline) == whole
    assert ratio_intervals(error, baseline, seed=1) != whole


def test_memory_is_bounded_by_chunks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    error, baseline = skewed(20, 2, seed=2), skewed(20, 2, seed=3)
    whole = ratio_intervals(error, baseline)
    monkeypatch.setattr("flcache.evaluation.bootstrap.CHUNK_COUNTS", 200)
    for one, other in zip(ratio_intervals(error, baseline), whole, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-9)


def test_comparisons_are_paired() -> None:
    """An error that is always half of its baseline is known exactly, however much both vary."""
    baseline = skewed(30, 1, seed=4)
    (interval,) = ratio_intervals(baseline / 2, baseline)
    assert (interval.low, interval.high) == pytest.approx((0.5, 0.5), abs=1e-6)


def test_few_clips() -> None:
    nothing, one, two = torch.zeros(5, 1), torch.eye(5)[:, :1], torch.eye(5)[:, :2].sum(1, keepdim=True)
    for present, known in ((nothing, False), (one, False), (two, True)):
        (interval,) = ratio_intervals(3 * present.double(), present.double())
        assert (interval == Interval(3, 3)) if known else math.isnan(interval.low)
    (interval,) = ratio_intervals(torch.full((4, 1), torch.inf).double(), torch.ones(4, 1).double())
    assert math.isnan(interval.low) and math.isnan(interval.high)
