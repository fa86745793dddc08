"""95 % intervals over videos: the bootstrap for means and skills, Wilson's interval for shares of right answers.

Clips of one video resemble each other, so videos are drawn with replacement, each with all its clips. All means and
skills use the same resamples, so comparisons are paired. Each is a ratio of sums over clips: a mean is the sum of
values over the sum of ones. The intervals are studentised (bootstrap-t, Efron and Tibshirani 1993, chapter 12.5), with
the standard error of a ratio from its linearisation: errors are skewed, and plain percentile intervals cover too
seldom for 64 videos. Wilson's interval has a width at shares of 0 and 1 too.

Shapes: N clips, V videos, M ratios, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
QUANTILE = 1.96
"""The normal distribution's at the upper end of `LEVEL`."""
PRIOR_VIDEOS = 2
"""Videos added to the estimate of a design effect, whose clips are all alike."""
CHUNK_COUNTS = 4_000_000
"""Entries of a matrix of counts (resamples x videos) that is in memory at once: 32 MB."""


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval; NaN for too few videos."""

    low: float
    high: float


def number_videos(clip_ids: Sequence[str], video_of: Mapping[str, str] | None = None) -> Tensor:
    """(N,) int64: the same number for clips of the same video.

    The video is `video_of[clip_id]`; if that is missing, the part of the id before `-<number>`; else the id itself.
    """
    numbers: dict[str, int] = {}
    videos = [(video_of or {}).get(clip_id) or _video_in(clip_id) for clip_id in clip_ids]
    return torch.tensor([numbers.setdefault(video, len(numbers)) for video in videos], dtype=torch.long)


def ratio_intervals(
    numerators: Tensor, denominators: Tensor, videos: Tensor, *, resamples: int = RESAMPLES
) -> list[Interval]:
    """Intervals of the M ratios of sums over clips, of `numerators` and `denominators` (N, M) float64.

    `videos` (N,) are the numbers of the clips' videos. A clip that does not count for a ratio is zero in both. A ratio
    that is the same for every video has an interval of width 0; one that has fewer than two videos or is not finite has
    NaN.
    """
    numerators, denominators = _per_video(numerators, videos), _per_video(denominators, videos)
    ratio, error = _ratio(torch.ones(1, len(numerators), dtype=torch.float64), numerators, denominators)
    studentised = [
        (resampled - ratio) / resampled_error
        for counts in _counts(len(numerators), resamples)
        for resampled, resampled_error in [_ratio(counts, numerators, denominators)]
    ]
    scores = torch.cat(studentised)  # (R, M)
    scores = torch.where(scores.isfinite(), scores, torch.nan)  # the same video in all draws
    tail = (1 - LEVEL) / 2
    low, high = torch.nanquantile(scores, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)  # (M,) each
    rounding = 1e-7 * ratio[0].abs() + torch.finfo(torch.float64).tiny  # `_ratio` subtracts squares
    fixed = (error[0] <= rounding) & ratio[0].isfinite()
    below, above = (torch.where(fixed, 0.0, error[0] * score) for score in (high, low))
    enough = (denominators != 0).sum(0) >= 2
    bounds = torch.where(enough, torch.stack((ratio[0] - below, ratio[0] - above)), torch.nan)
    return [Interval(low, high) for low, high in bounds.T.tolist()]


def share_interval(right: Tensor, videos: Tensor) -> Interval:
    """The interval of the share of `right` (N,) bool: Wilson's score interval (1927) for an effective number of clips.

    That is N divided by the design effect (Dean and Pagano 2015), which is at least 1: the variance of the share with
    clips grouped into `videos` (N,), over that with independent clips. Only videos that have answers of the rarer kind
    inform its estimate; as these can be few, it is averaged with `PRIOR_VIDEOS` videos whose clips are all alike.
    Without any, all clips of a video count as alike.
    """
    share = right.double().mean().item()
    clips = _effective_clips(right.double(), videos, share)
    centre = share + QUANTILE**2 / (2 * clips)
    half = QUANTILE * math.sqrt(share * (1 - share) / clips + (QUANTILE / (2 * clips)) ** 2)
    scale = 1 + QUANTILE**2 / clips
    return Interval(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def _effective_clips(right: Tensor, videos: Tensor, share: float) -> float:
    """The number of independent clips that the answers `right` (N,) are worth."""
    columns = torch.stack((right, torch.ones_like(right), right - share), dim=1)
    rights, sizes, deviations = _per_video(columns, videos).unbind(1)
    clips, num_videos = len(right), int((sizes > 0).sum())
    all_alike = sizes.square().sum().item() / clips
    informative = min(int((rights > 0).sum()), int((rights < sizes).sum()))
    if not informative or num_videos == 1:
        return clips / all_alike
    variance = deviations.square().sum().item() / clips**2 * num_videos / (num_videos - 1)
    design_effect = max(1.0, variance * clips / (share * (1 - share)))
    return clips / ((informative * design_effect + PRIOR_VIDEOS * all_alike) / (informative + PRIOR_VIDEOS))


def _video_in(clip_id: str) -> str:
    video, dash, number = clip_id.rpartition("-")
    return video if dash and number.isdecimal() else clip_id


def _per_video(values: Tensor, videos: Tensor) -> Tensor:
    """Sums (V, M) of `values` (N, M) float64 over the clips of each video."""
    count = int(videos.max()) + 1 if len(videos) else 0
    return torch.zeros(count, values.shape[1], dtype=torch.float64).index_add_(0, videos, values)


def _ratio(counts: Tensor, numerators: Tensor, denominators: Tensor) -> tuple[Tensor, Tensor]:
    """Ratios (R, M) where each video is taken `counts` (R, V) times, and their standard errors (R, M)."""
    total = counts @ denominators
    ratio = (counts @ numerators) / total
    squares = counts @ numerators.square() - 2 * ratio * (counts @ (numerators * denominators))
    squares += ratio.square() * (counts @ denominators.square())
    return ratio, squares.clamp(min=0).sqrt() / total


def _counts(num_videos: int, resamples: int) -> Iterator[Tensor]:
    """How often each video is drawn, (r, V) float64, for `resamples` rows altogether."""
    generator = np.random.default_rng(SEED)
    rows = max(1, CHUNK_COUNTS // num_videos)
    for start in range(0, resamples, rows):
        drawn = min(rows, resamples - start)
        places = generator.integers(num_videos, size=(drawn, num_videos)) + num_videos * np.arange(drawn)[:, None]
        counts = np.bincount(places.ravel(), minlength=drawn * num_videos).reshape(drawn, num_videos)
        yield torch.from_numpy(counts).double()
