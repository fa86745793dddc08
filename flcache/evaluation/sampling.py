"""Several futures of one context: what a generative predictor is measured by.

Its prediction is the mean of k samples, which is what the other errors and the skills are of; a single sample of an
exact sampler has twice the error of the best prediction, which says nothing against it.

mean        error of the mean of the k samples
expected    error that the mean of ever more samples tends to: `mean` less `diversity` / k, without bias for every k
single      error of the first sample
best        error of the nearest of the k samples, chosen for each clip and horizon: falls with k by luck alone, so k is
            reported with it
diversity   variance among samples (unbiased, mean over positions and channels): 0 is one future
energy      energy score, a proper score of the distribution (Gneiting and Raftery 2007, equation 22), in the form that
            is unbiased for k samples (Ferro 2014): mean distance to the truth less half the mean distance between
            samples, where a distance is the root of the mean square over H, W, D. One certain future has its distance

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
"""context (B, Tc, H, W, D), context_times (B, Tc), target_times (B, K), B seeds -> (B, K, H, W, D): of each clip the
future that its seed decides, whatever clips are beside it."""


@dataclass(frozen=True)
class Sampling:
    """How a generative predictor is asked for futures."""

    draw: Sample
    num_samples: int
    """At least 2."""
    seed: int = 0
    max_clips: int = 512
    """Samples are dear: only the first so many clips are evaluated; planning has shuffled them."""

    def samples(self, context: Tensor, context_times: Tensor, target_times: Tensor, ids: Sequence[str]) -> Tensor:
        """(S, B, K, H, W, D) of the clips `ids`."""
        drawn = [
            self.draw(context, context_times, target_times, clip_seeds(self.seed, ids, number))
            for number in range(self.num_samples)
        ]
        return torch.stack(drawn)


def clip_seeds(seed: int, ids: Sequence[str], number: int = 0) -> list[int]:
    """Of the sample `number` of each clip: functions of these three alone."""
    return [xxhash.xxh3_64_intdigest(f"{seed}/{number}/{clip_id}".encode()) >> 1 for clip_id in ids]


@dataclass(frozen=True)
class SampleScores:
    """Per clip and horizon, each (B, K) float64 on the CPU."""

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


def join_samples(parts: Sequence[SampleScores]) -> SampleScores:
    """The scores of all batches as one."""
    names = SampleScores.__dataclass_fields__
    return SampleScores(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
