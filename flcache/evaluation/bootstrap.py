"""95 % intervals over clips by the bootstrap, for means and for skills, all from the same resamples.

Clips are drawn with replacement, each with all its horizons and with its prediction and its baselines together, so
that a comparison is paired. Everything reported is a ratio of sums over clips: a mean is the sum of values over the
sum of ones. The intervals are studentised (bootstrap-t, Efron and Tibshirani 1993, chapter 12.5), with the standard
error of a ratio from its linearisation: errors are skewed, and for 64 clips plain percentiles then cover too seldom.

Shapes: N clips, M ratios, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
CHUNK_COUNTS = 4_000_000
"""Entries of a matrix of counts (resamples x clips) that is in memory at once: 32 MB."""


@dataclass(frozen=True)
class Interval:
    """Where the truth lies with 95 % confidence; NaN where there are too few clips to tell."""

    low: float
    high: float


def ratio_intervals(
    numerators: Tensor, denominators: Tensor, *, resamples: int = RESAMPLES, seed: int = SEED
) -> list[Interval]:
    """Intervals of the M ratios of sums over clips, of `numerators` and `denominators` (N, M) float64.

    A clip that does not count for a ratio is zero in both. A ratio that is the same for every clip has an interval
    of no width; one with fewer than two clips has none (NaN).
    """
    ratio, error = _ratio(torch.ones(1, len(numerators), dtype=torch.float64), numerators, denominators)
    studentised = [
        (resampled - ratio) / resampled_error
        for counts in _counts(len(numerators), resamples, seed)
        for resampled, resampled_error in [_ratio(counts, numerators, denominators)]
    ]
    scores = torch.cat(studentised)  # (R, M)
    scores = torch.where(scores.isfinite(), scores, torch.nan)  # all draws the same clip: says nothing
    tail = (1 - LEVEL) / 2
    low, high = torch.nanquantile(scores, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)  # (M,) each
    fixed = (error[0] <= _rounding(ratio[0])) & ratio[0].isfinite()
    below, above = (torch.where(fixed, 0.0, error[0] * score) for score in (high, low))
    enough = (denominators != 0).sum(0) >= 2
    bounds = torch.where(enough, torch.stack((ratio[0] - below, ratio[0] - above)), torch.nan)
    return [Interval(low, high) for low, high in bounds.T.tolist()]


def _ratio(counts: Tensor, numerators: Tensor, denominators: Tensor) -> tuple[Tensor, Tensor]:
    """Ratios (R, M) where each clip is taken `counts` (R, N) times, and their standard errors (R, M)."""
    total = counts @ denominators
    ratio = (counts @ numerators) / total
    squares = counts @ numerators.square() - 2 * ratio * (counts @ (numerators * denominators))
    squares += ratio.square() * (counts @ denominators.square())
    return ratio, squares.clamp(min=0).sqrt() / total


def _rounding(ratio: Tensor) -> Tensor:
    """A standard error below this is what float64 leaves of zero, since `_ratio` subtracts squares."""
    return 1e-7 * ratio.abs() + torch.finfo(torch.float64).tiny


def _counts(num_clips: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each clip is drawn, (r, N) float64, for `resamples` rows altogether."""
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK_COUNTS // num_clips)
    for start in range(0, resamples, rows):
        drawn = min(rows, resamples - start)
        places = generator.integers(num_clips, size=(drawn, num_clips)) + num_clips * np.arange(drawn)[:, None]
        counts = np.bincount(places.ravel(), minlength=drawn * num_clips).reshape(drawn, num_clips)
        yield torch.from_numpy(counts).double()
