"""Metrics of a generative predictor, from k sampled futures of each context.

Its prediction is the mean of the samples, of which all other errors and skills are taken: even a single sample of a
perfect sampler has twice the error of the best prediction.

mean        error of the mean of the k samples
expected    error in the limit of infinitely many samples: `mean` less `diversity` / k, unbiased for every k
single      error of the first sample
best        error of the nearest of the k samples, chosen for each clip and horizon; falls with k by chance alone
diversity   variance among samples (unbiased, mean over positions and channels): 0 is one future
energy      energy score, a proper score of the distribution (Gneiting and Raftery 2007, equation 22), in the form that
            is unbiased for k samples (Ferro 2014): mean distance to the truth less half the mean distance between
            samples, where a distance is the root of the mean square over H, W, D. That of k equal samples is their
            distance to the truth

Shapes: S samples, B clips, K horizons, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import xxhash
from torch import Tensor

from flcache.evaluation.metrics import mean_square

Sample = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]
"""context (B, Tc, H, W, D), context_times (B, Tc), target_times (B, K), B seeds -> (B, K, H, W, D). A clip's seed
decides its future, whatever else is in the batch."""


@dataclass(frozen=True)
class Sampling:
    """How futures are sampled from a generative predictor."""

    draw: Sample
    num_samples: int
    """At least 2."""
    seed: int = 0
    max_clips: int = 512
    """To save time, only the first clips are evaluated, a random sample since plans are shuffled."""

    def samples(self, context: Tensor, context_times: Tensor, target_times: Tensor, ids: Sequence[str]) -> Tensor:
        """(S, B, K, H, W, D) of the clips `ids`."""
        seeds = [clip_seeds(self.seed, ids, number) for number in range(self.num_samples)]
        return torch.stack([self.draw(context, context_times, target_times, each) for each in seeds])


def clip_seeds(seed: int, ids: Sequence[str], number: int = 0) -> list[int]:
    """The seed of sample `number` of each clip: a function of `seed`, `number` and the clip's id."""
    return [xxhash.xxh3_64_intdigest(f"{seed}/{number}/{clip_id}".encode()) >> 1 for clip_id in ids]


@dataclass(frozen=True)
class SampleScores:
    """Metrics per clip and horizon; each (B, K) float64 on the CPU."""

    mean: Tensor
    expected: Tensor
    single: Tensor
    best: Tensor
    diversity: Tensor
    energy: Tensor


def score_samples(samples: Tensor, target: Tensor) -> SampleScores:
    """Compare (S, B, K, H, W, D) with (B, K, H, W, D); S of at least 2."""
    count, samples, target = len(samples), samples.float(), target.float()
    errors = torch.stack([mean_square(sample - target) for sample in samples])  # (S, B, K)
    pairs = list(combinations(samples, 2))
    between = torch.stack([mean_square(one - other) for one, other in pairs])  # (S * (S - 1) / 2, B, K)
    mean, diversity = mean_square(samples.mean(0) - target), between.mean(0) / 2
    return SampleScores(
        mean=mean,
        expected=mean - diversity / count,
        single=errors[0],
        best=errors.amin(0),
        diversity=diversity,
        energy=errors.sqrt().mean(0) - between.sqrt().mean(0) / 2,
    )
