"""Ridge autoregression in closed form: the next step as one linear map of the last k, shared by all positions.

Each patch is predicted from the same patch at the last k steps, channels mixed, with a constant: (k * D + 1) x D
weights. They solve normal equations that are summed up in float64 while the training clips stream by, so memory does
not grow with their number. The strength of the ridge is the one with the least next-step error on every eighth clip,
which the same sums give without a second look at the data; the weights are then solved from all clips.

Shapes: B clips, T steps, H x W patch grid, D channels; F = k * D + 1 features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.errors import DataError

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges to choose from, as fractions of the mean power of a feature."""
ROWS_PER_CLIP = 256
"""Of a clip's steps times positions, which are far more rows than there are weights: 13 steps of 64 positions are 832,
and take a quarter of the time for the same skill."""
HELD_OUT_EVERY = 8
"""Every which clip chooses the strength."""


@dataclass(frozen=True)
class Ridge:
    """A fitted map, rolled out: every prediction is the newest of the past steps of the next."""

    weights: Tensor
    """(k * D + 1, D) float32; oldest step first, the constant last."""
    steps: int
    """k"""
    strength: float
    """The chosen one of STRENGTHS."""

    def __call__(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        """A predictor's signature; `context` has at least k steps."""
        weights = self.weights.to(context.device, context.dtype)
        past = list(context[:, -self.steps :].unbind(1))  # k of (B, H, W, D)
        for _ in range(target_times.shape[1]):
            features = torch.cat(past[-self.steps :], dim=-1)
            past.append(features @ weights[:-1] + weights[-1])
        return torch.stack(past[self.steps :], dim=1)


class _Sums:
    """Moments of features x (F) and targets y (D) over rows."""

    def __init__(self, features: int, channels: int) -> None:
        self.rows = 0
        self.products = torch.zeros(features, features + channels, dtype=torch.float64)
        """(F, F + D): sums of x x' beside sums of x y'."""
        self.power = 0.0
        """Sum of y'y."""

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add rows: features (rows, F), targets (rows, D), both float64."""
        self.rows += len(features)
        self.products += (features.T @ torch.cat((features, targets), dim=1)).cpu()
        self.power += float(targets.square().sum())

    def solve(self, strength: float) -> Tensor:
        """(F, D) weights under a ridge of `strength`, the constant left free of it."""
        gram, moments = self.products[:, : len(self.products)], self.products[:, len(self.products) :]
        ridge = gram.diagonal()[:-1].mean() * strength
        penalty = torch.cat((ridge.expand(len(gram) - 1), torch.zeros(1, dtype=torch.float64)))
        weights: Tensor = torch.linalg.solve(gram + penalty.diag(), moments)
        return weights

    def error(self, weights: Tensor) -> float:
        """Mean over rows of the squared error of `weights` (F, D)."""
        gram, moments = self.products[:, : len(weights)], self.products[:, len(weights) :]
        explained = 2 * (weights * moments).sum() - (weights * (gram @ weights)).sum()
        return (self.power - float(explained)) / max(1, self.rows)

    def __add__(self, other: _Sums) -> _Sums:
        total = _Sums(len(self.products), self.products.shape[1] - len(self.products))
        total.rows, total.power = self.rows + other.rows, self.power + other.power
        total.products = self.products + other.products
        return total


class RidgeMoments:
    """The normal equations of a ridge over `steps` past steps of `channels` channels, summed up batch by batch."""

    def __init__(self, channels: int, steps: int) -> None:
        self._steps = steps
        features = steps * channels + 1
        self._fitting, self._held_out = _Sums(features, channels), _Sums(features, channels)
        self._clips = 0

    def add(self, batch: LatentBatch, splits: Sequence[int]) -> None:
        """Learn from the clips of `batch` to predict the steps in `splits`, where they are not padding."""
        usable = [split for split in splits if split >= self._steps]
        if not usable:
            return
        features, targets, clips = self._rows(batch, usable)
        held_out = (self._clips + clips) % HELD_OUT_EVERY == 1
        self._fitting.add(features[~held_out], targets[~held_out])
        self._held_out.add(features[held_out], targets[held_out])
        self._clips += len(batch)

    def fit(self) -> Ridge:
        """The map. Raises DataError where no clip has enough steps that are not padding."""
        everything = self._fitting + self._held_out
        if not everything.rows:
            raise DataError(
                f"no training clip has {self._steps + 1} steps that are not padding, so there is nothing to fit a "
                "ridge to; lower evaluation.ridge_steps"
            )
        judge = self._held_out if self._held_out.rows else everything
        learner = self._fitting if self._fitting.rows else everything
        strength = min(STRENGTHS, key=lambda candidate: judge.error(learner.solve(candidate)))
        return Ridge(everything.solve(strength).float(), self._steps, strength)

    def _rows(self, batch: LatentBatch, splits: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Features (rows, F), targets (rows, D) and the number in the batch of each row's clip (rows,).

        A clip gives at most ROWS_PER_CLIP of its positions and steps, evenly spread over both.
        """
        past, targets = batch.latents.flatten(2, 3), batch.targets.flatten(2, 3)  # (B, T, P, D)
        stride = math.ceil(len(splits) * past.shape[2] / ROWS_PER_CLIP)
        parts = []
        for split in splits:
            clips = batch.valid[:, split].nonzero()[:, 0]
            positions = slice(split % stride, None, stride)
            before = past[clips, split - self._steps : split, positions].transpose(1, 2).flatten(2)  # (b, p, k * D)
            after = targets[clips, split, positions]  # (b, p, D)
            owners = clips.repeat_interleave(after.shape[1])
            parts.append((_double(before).flatten(0, 1), _double(after).flatten(0, 1), owners))
        features, after, owners = (torch.cat(part) for part in zip(*parts, strict=True))
        return torch.cat((features, torch.ones_like(features[:, :1])), dim=1), after, owners.to(features.device)


def _double(values: Tensor) -> Tensor:
    """As float64, on the CPU where the device has none (Apple's MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()
