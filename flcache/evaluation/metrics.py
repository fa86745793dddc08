"""Metrics of a prediction per horizon, on standardised latents.

error    mean squared difference; the latents have unit variance per channel, so 1.0 is what predicting the mean costs
l1       mean absolute difference
cosine   between predicted and true token, mean over tokens
skill    1 - error / error of a baseline: 0 is no better than the baseline, 1 is perfect, below 0 is worse

Each is a mean over H, W, D of a clip's step, kept in float64 on the CPU, and then over the clips whose step is not
padding. Where the encoder trains, the targets' variance drifts away from 1: errors are then divided by it, l1 by its
root.

Shapes: B clips, K horizons, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from flcache.evaluation.processes import add_exactly

NOISE = 1e-4
"""Squared errors below this fraction of the targets' power count as this much in a skill. It is an error of 1 % of the
RMS, about that of the coarsest codec: below it, two errors differ by rounding."""
_Scores = TypeVar("_Scores")


@dataclass(frozen=True)
class Scores:
    """Metrics per clip and horizon; each (B, K) float64 on the CPU."""

    error: Tensor
    l1: Tensor
    cosine: Tensor


def score(prediction: Tensor, target: Tensor) -> Scores:
    """Compare (B, K, H, W, D) with (B, K, H, W, D)."""
    prediction, target = prediction.float(), target.float()
    difference = prediction - target
    return Scores(
        error=mean_square(difference),
        l1=_per_step(difference.abs()),
        cosine=_per_step(cosine_similarity(prediction, target, dim=-1)),
    )


def mean_square(values: Tensor) -> Tensor:
    """(B, K) mean square of (B, K, H, W, D), float64 on the CPU."""
    return _per_step(values.float().square())


def join(parts: Sequence[_Scores]) -> _Scores:
    """The scores of all batches as one: tensors (B, ...), dataclasses and mappings of such, or None."""
    batches: Sequence[Any] = parts
    joined: Any = None
    first = batches[0]
    if isinstance(first, Tensor):
        joined = torch.cat([*batches])
    elif isinstance(first, Mapping):
        joined = {name: join([batch[name] for batch in batches]) for name in first}
    elif first is not None:
        joined = type(first)(**{name: join([getattr(batch, name) for batch in batches]) for name in vars(first)})
    return cast(_Scores, joined)


class ChannelVariance:
    """Variance of latents within channels, mean over channels, from sums over batches."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        """Additive over processes."""

    def add(self, latents: Tensor) -> None:
        """Count tokens (..., D)."""
        tokens = latents.flatten(0, -2).float()
        values = {"tokens": torch.tensor([len(tokens)]), "values": tokens.sum(0), "squares": tokens.square().sum(0)}
        for name, value in values.items():
            add_exactly(self.sums.setdefault(name, torch.zeros(len(value), dtype=torch.float64)), value)

    def value(self) -> float:
        """NaN without tokens."""
        if not self.sums or not self.sums["tokens"]:
            return float("nan")
        mean, square = (self.sums[name] / self.sums["tokens"] for name in ("values", "squares"))
        return float((square - mean.square()).mean())


def mean_over_clips(values: Tensor, valid: Tensor) -> Tensor:
    """(K,) mean of `values` (B, K) over the clips that are `valid` (B, K) there; NaN for a horizon without any."""
    return torch.where(valid, values, 0.0).sum(0) / valid.sum(0)


def noise_level(target_power: Tensor) -> Tensor:
    """The mean squared error that counts as rounding, where the targets' mean square is `target_power`."""
    return (NOISE * target_power).clamp(min=torch.finfo(torch.float64).tiny)


def skill(error: Tensor, baseline_error: Tensor, noise: Tensor) -> Tensor:
    """(K,) skill from mean errors (K,); errors below `noise` (K,) count as `noise`, so that two of them give 0.

    NaN where an error is not finite.
    """
    found = 1 - torch.maximum(error, noise) / torch.maximum(baseline_error, noise)
    return torch.where(error.isfinite() & baseline_error.isfinite(), found, torch.nan)


def _per_step(values: Tensor) -> Tensor:
    """Means (B, K) of (B, K, ...), taken on the values' device, which may lack float64."""
    return values.flatten(2).mean(dim=2).cpu().double()
