"""Ridge regression in closed form: every horizon has a linear map of its own from the last k true steps.

Each patch is predicted from the same patch at the last k steps, channels mixed: k * D x D weights a horizon, shared by
all positions. A map that is fed its own predictions instead multiplies whatever it gets wrong by itself, horizon after
horizon. The weights solve normal equations that are summed up in float64 while the training clips stream by, so memory
does not grow with their number: for D = 1024, k = 3 and 8 horizons they hold 1.5 GB, and solving takes as much again.

The constant is one for all positions, or one for each; then a prediction cannot be worse than the dataset mean on the
rows it is fitted to. How strong the ridge is, and then which of the two, has the least error on every eighth clip,
horizon by horizon; the same sums give that error without a second look at the data. All clips then give the weights.

Shapes: B clips, T steps, H x W patch grid, P = H * W positions, D channels, K horizons; F = k * D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.errors import DataError

STRENGTHS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1000.0)
"""Ridges to choose from, as fractions of the mean variance of a feature; the last leaves little more than constants."""
ROWS_PER_CLIP = 256
"""Of a clip's boundaries times positions, which are far more rows than there are weights."""
HELD_OUT_EVERY = 8
"""Every which clip chooses the strength."""

Choice = tuple[float, bool]
"""Strength, and whether every position has a constant of its own."""
_Map = tuple[Tensor, Tensor, Choice]
"""Weights (F, D) and constants (P, D) of one horizon."""


@dataclass(frozen=True)
class Ridge:
    """Fitted maps, one a horizon."""

    weights: Tensor
    """(K, k * D, D) float32; oldest step first."""
    constants: Tensor
    """(K, P, D) float32"""
    steps: int
    """k"""
    choices: tuple[Choice, ...]
    """Of each horizon."""

    def __call__(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        """A predictor's signature; `context` has at least k steps, and at most K times are asked for."""
        count, grid = target_times.shape[1], context.shape[2:4]
        assert count <= len(self.weights), "fit_baselines was told of fewer horizons"
        past = torch.cat(context[:, -self.steps :].unbind(1), dim=-1)  # (B, H, W, F)
        weights, constants = self.weights[:count].to(past), self.constants[:count].to(past)
        maps = zip(weights, constants.reshape(count, *grid, -1), strict=True)
        return torch.stack([past @ weight + constant for weight, constant in maps], dim=1)


@dataclass(frozen=True)
class _Sums:
    """Moments of rows, in float64 where the rows are: features x (F) at a position, targets y (D) of K horizons."""

    counts: Tensor
    """(P,)"""
    sums: Tensor
    """(P, F + K * D): of x beside those of y, by position."""
    products: Tensor
    """(F, F + K * D): sums of x x' beside sums of x y'."""
    powers: Tensor
    """(K,) sums of y'y."""

    @classmethod
    def none(cls, positions: int, features: int, targets: int, horizons: int, device: torch.device) -> _Sums:
        """Of no rows yet, with `targets` = K * D."""
        width = features + targets
        shapes = (positions,), (positions, width), (features, width), (horizons,)
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    def add(self, features: Tensor, targets: Tensor, positions: slice) -> None:
        """Add features (b, p, F) and targets (b, p, K, D), both float64, of every clip's p `positions`."""
        rows = torch.cat((features, targets.flatten(2)), dim=2)  # (b, p, F + K * D)
        self.counts[positions] += len(rows)
        self.sums[positions] += rows.sum(0)
        self.products.addmm_(features.flatten(0, 1).T, rows.flatten(0, 1))
        self.powers.add_(targets.square().sum(dim=(0, 1, 3)))

    def of_horizons(self, first: int, end: int) -> _Sums:
        """The moments of the horizons `first` to `end`, without it."""
        features = len(self.products)
        channels = (self.products.shape[1] - features) // len(self.powers)
        targets = slice(features + first * channels, features + end * channels)
        sums, products = (
            torch.cat((part[:, :features], part[:, targets]), dim=1) for part in (self.sums, self.products)
        )
        return _Sums(self.counts, sums, products, self.powers[first:end])

    def solve(self, choice: Choice) -> tuple[Tensor, Tensor]:
        """Weights (F, K * D) under a ridge, and constants (P, K * D) that are free of it."""
        strength, by_position = choice
        features = len(self.products)
        overall = self.sums.sum(0) / max(1, self.rows)
        means, sums = overall[None], self.sums.sum(0, keepdim=True)
        if by_position:
            known = self.counts[:, None] > 0
            means, sums = torch.where(known, self.sums / self.counts.clamp(min=1)[:, None], overall), self.sums
        centred = self.products - sums[:, :features].T @ means
        gram, moments = centred[:, :features], centred[:, features:]
        # what rounding leaves of features that never vary must not look like a variance
        ridge = strength * gram.diagonal().mean() + 1e-12 * self.products.diagonal().mean() + 1e-30
        gram.diagonal().add_(ridge)
        weights = torch.linalg.solve(gram, moments)
        constants = means[:, features:] - means[:, :features] @ weights
        return weights, constants.expand(len(self.counts), -1)

    def errors(self, weights: Tensor, constants: Tensor) -> Tensor:
        """(K,) mean over rows of the squared error of what `solve` gives."""
        features = len(weights)
        gram, moments = self.products[:, :features], self.products[:, features:]
        of_weights = (weights * (gram @ weights - 2 * moments)).sum(0)
        left = self.sums[:, features:] - self.sums[:, :features] @ weights  # (P, K * D)
        of_constants = (constants * (self.counts[:, None] * constants - 2 * left)).sum(0)
        explained: Tensor = (of_weights + of_constants).reshape(len(self.powers), -1).sum(1)
        return (self.powers + explained) / max(1, self.rows)


class RidgeMoments:
    """The normal equations of `horizons` maps from `steps` past steps, summed up batch by batch."""

    def __init__(self, steps: int, horizons: int) -> None:
        self._steps, self._horizons = steps, horizons
        self._reaches = sorted({horizons >> halvings for halvings in range(horizons.bit_length())})
        """Numbers of horizons that rows may have, such as 1, 2, 4 and 8."""
        self._sums: dict[tuple[bool, int], _Sums] = {}
        """By whether they are held out, and by how many horizons the rows have, rounded down to one of the reaches: the
        horizons between two of these share a Gram matrix, so that there are few."""
        self._clips, self._batches = 0, 0

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self._sums.values())

    def add(self, batch: LatentBatch, boundaries: Sequence[int]) -> None:
        """Learn from the targets' latents of `batch` what follows its steps before each of `boundaries`."""
        usable = [boundary for boundary in boundaries if boundary >= self._steps]
        positions = batch.targets.shape[2] * batch.targets.shape[3]
        stride = math.ceil(len(usable) * positions / ROWS_PER_CLIP)
        held_out = (self._clips + torch.arange(len(batch))) % HELD_OUT_EVERY == 1
        for number, boundary in enumerate(usable):
            # every position has its turn, whatever the stride
            chosen = slice((number + self._batches) % stride, None, stride)
            ahead = batch.valid[:, boundary : boundary + self._horizons].cpu().long().cumprod(1).sum(1)  # (B,)
            for (reach, end), held in product(pairwise([*self._reaches, self._horizons + 1]), (False, True)):
                clips = ((reach <= ahead) & (ahead < end) & (held_out == held)).nonzero()[:, 0]
                if len(clips):
                    self._add(batch.targets, clips, boundary, chosen, reach, held)
        self._clips += len(batch)
        self._batches += 1

    def fit(self) -> Ridge:
        """The maps. Raises DataError where no clip has enough steps that are not padding."""
        reaches = sorted({reach for _, reach in self._sums})
        if not reaches:
            raise DataError(
                f"no training clip has {self._steps + 1} steps that are not padding, so there is nothing to fit a "
                "ridge to; lower evaluation.ridge_steps"
            )
        maps: list[_Map] = []
        for first, end in pairwise([0, *reaches]):
            maps += _fit(self._total(False, first, end), self._total(True, first, end))
        maps += maps[-1:] * (self._horizons - len(maps))  # where every training clip is padded
        weights, constants, choices = zip(*maps, strict=True)
        return Ridge(torch.stack(weights), torch.stack(constants), self._steps, choices)

    def _add(self, latents: Tensor, clips: Tensor, boundary: int, chosen: slice, reach: int, held_out: bool) -> None:
        rows = latents[clips.to(latents.device), boundary - self._steps : boundary + reach].flatten(2, 3)
        rows = _double(rows[:, :, chosen]).transpose(1, 2)  # (b, p, k + reach, D)
        features, targets = rows[:, :, : self._steps].flatten(2), rows[:, :, self._steps :]
        key = held_out, reach
        if key not in self._sums:
            positions = latents.shape[2] * latents.shape[3]
            self._sums[key] = _Sums.none(positions, features.shape[2], reach * latents.shape[4], reach, rows.device)
        self._sums[key].add(features, targets, chosen)

    def _total(self, held_out: bool, first: int, end: int) -> _Sums | None:
        """Of all rows that have the horizons `first` to `end`, without it; None if there are none."""
        found = [part for (held, reach), part in self._sums.items() if held == held_out and reach >= end]
        return _add_up([part.of_horizons(first, end) for part in found]) if found else None


def _fit(learner: _Sums | None, judge: _Sums | None) -> list[_Map]:
    """The map of each horizon, from the rows of both; one of the two may be missing."""
    everything = _add_up([part for part in (learner, judge) if part is not None])
    learner, judge = learner or everything, judge or everything
    errors = torch.stack([judge.errors(*learner.solve((strength, True))) for strength in STRENGTHS])  # (strengths, K)
    strengths = [STRENGTHS[best] for best in errors.argmin(0).tolist()]
    shared = {strength: judge.errors(*learner.solve((strength, False))) for strength in set(strengths)}
    maps = []
    for horizon, (strength, error) in enumerate(zip(strengths, errors.amin(0).tolist(), strict=True)):
        choice = strength, error < shared[strength][horizon].item()
        weights, constants = everything.of_horizons(horizon, horizon + 1).solve(choice)
        maps.append((weights.float(), constants.float(), choice))
    return maps


def _add_up(parts: Sequence[_Sums]) -> _Sums:
    """The moments of all rows of `parts`, which are of the same horizons."""
    total = parts[0]
    for part in parts[1:]:
        total = _Sums(*(one + other for one, other in zip(vars(total).values(), vars(part).values(), strict=True)))
    return total


def _double(values: Tensor) -> Tensor:
    """As float64, on the CPU where the device has none (Apple's MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()
