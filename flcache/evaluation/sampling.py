"""Several futures of one context: what a generative predictor is measured by, beside its prediction.

best        error of the nearest of k samples, chosen for each clip and horizon: falls with k by luck alone, so k is
            reported with it
mean        error of the mean of the k samples, which is the best a sampler can do in squared error
diversity   variance among samples (unbiased, mean over positions and channels): 0 is one future

Shapes: S samples, B clips, K horizons, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flcache.evaluation.metrics import score

Sample = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""context (B, Tc, H, W, D), context_times (B, Tc), target_times (B, K), how many -> (S, B, K, H, W, D)."""


@dataclass(frozen=True)
class Sampling:
    """How a generative predictor is asked for futures."""

    draw: Sample
    num_samples: int
    """At least 2."""


@dataclass(frozen=True)
class SampleScores:
    """Per clip and horizon, each (B, K) float64 on the CPU."""

    best: Tensor
    mean: Tensor
    diversity: Tensor


def score_samples(samples: Tensor, target: Tensor) -> SampleScores:
    """Compare (S, B, K, H, W, D) with (B, K, H, W, D); S of at least 2."""
    errors = torch.stack([score(sample, target).error for sample in samples])  # (S, B, K)
    mean = samples.float().mean(0)
    spread = torch.stack([score(sample, mean).error for sample in samples]).sum(0) / (len(samples) - 1)
    return SampleScores(best=errors.amin(0), mean=score(mean, target).error, diversity=spread)


def join_samples(parts: Sequence[SampleScores]) -> SampleScores:
    """The scores of all batches as one."""
    return SampleScores(
        best=torch.cat([part.best for part in parts]),
        mean=torch.cat([part.mean for part in parts]),
        diversity=torch.cat([part.diversity for part in parts]),
    )
