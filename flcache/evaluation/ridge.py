"""Ridge regression in closed form: every horizon has a linear map of its own from the last k true steps.

Each patch is predicted from the same patch at the last k steps: k * D x D weights per horizon, shared by all positions.
(One map applied to its own predictions instead would multiply its errors from horizon to horizon.) The weights solve
normal equations that are summed over one pass through the training clips, in float32 within a batch and in float64 over
batches, so memory does not grow with their number: for D = 1024, k = 3 and 8 horizons they take 1.4 GB, and solving
takes as much again.

There is one constant for all positions, or one for each; with the latter a prediction cannot be worse than the dataset
mean on the rows it is fitted to. For each horizon, first the strength of the ridge and then the kind of constants is
chosen that has the least error on every eighth clip, in at most `JUDGED_CHANNELS` channels; the same sums give that
error. The weights are then fitted to all clips.

Shapes: B clips, T steps, H x W patch grid, P = H * W positions, D channels, K horizons; F = k * D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.errors import DataError
from flcache.evaluation.processes import add_exactly

STRENGTHS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1000.0)
"""Ridges to choose from, as fractions of the mean variance of a feature; the last leaves little more than constants."""
ROWS_PER_CLIP = 256
"""At most about so many rows (pairs of boundary and position) of a clip are used."""
HELD_OUT_EVERY = 8
"""One of so many clips is used for the choices."""
JUDGED_CHANNELS = 128
"""At most so many channels of a target are used for the choices."""

Choice = tuple[float, bool]
"""Strength of the ridge, and whether every position has a constant of its own."""
_Map = tuple[Tensor, Tensor, Choice]
"""Weights (F, D) and constants (P, D) of one horizon."""


@dataclass(frozen=True)
class Ridge:
    """Fitted maps, one per horizon."""

    weights: Tensor
    """(K, k * D, D) float32; oldest step first."""
    constants: Tensor
    """(K, P, D) float32"""
    steps: int
    """k"""
    choices: tuple[Choice, ...]
    """One per horizon."""

    def __call__(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        """As `Predict`; `context` must have at least k steps, and `target_times` at most K."""
        count, grid = target_times.shape[1], context.shape[2:4]
        assert count <= len(self.weights), "fit_baselines was told of fewer horizons"
        past = torch.cat(context[:, -self.steps :].unbind(1), dim=-1)  # (B, H, W, F)
        weights, constants = self.weights[:count].to(past), self.constants[:count].to(past)
        maps = zip(weights, constants.reshape(count, *grid, -1), strict=True)
        return torch.stack([past @ weight + constant for weight, constant in maps], dim=1)


@dataclass(frozen=True)
class _Sums:
    """Moments of rows in float64: features x (F) at a position, targets y (D) of K horizons."""

    counts: Tensor
    """(P,)"""
    sums: Tensor
    """(P, F + K * D): sums of x beside sums of y, by position."""
    products: Tensor
    """(F, F + K * D): sums of x x' beside sums of x y'."""
    powers: Tensor
    """(K,) sums of y'y."""

    @classmethod
    def none(cls, positions: int, features: int, targets: int, horizons: int, device: torch.device) -> _Sums:
        """The moments of no rows, with `targets` = K * D."""
        width = features + targets
        shapes = (positions,), (positions, width), (features, width), (horizons,)
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def channels(self) -> int:
        """D"""
        return (self.products.shape[1] - len(self.products)) // len(self.powers)

    def add(self, blocks: Sequence[tuple[Tensor, Tensor, slice]]) -> None:
        """Add blocks of features (b, p, F) and targets (b, p, K, D) at p positions, in one matrix product."""
        rows = [torch.cat((features, targets.flatten(2)), dim=2) for features, targets, _ in blocks]
        for part, (_, targets, positions) in zip(rows, blocks, strict=True):
            self.counts[positions] += len(part)
            add_exactly(self.sums[positions], part.sum(0))
            add_exactly(self.powers, targets.square().sum(dim=(0, 1, 3)))
        joint = torch.cat([part.flatten(0, 1) for part in rows])
        add_exactly(self.products, joint[:, : len(self.products)].T @ joint)

    def of_horizons(self, first: int, end: int, stride: int = 1) -> _Sums:
        """The moments of the horizons `first` to `end` - 1, and of every `stride`th channel of the targets."""
        features, horizons = len(self.products), len(self.powers)

        def chosen(moments: Tensor) -> Tensor:
            targets = moments[:, features:].reshape(len(moments), horizons, -1)[:, first:end, ::stride]
            return torch.cat((moments[:, :features], targets.flatten(1)), dim=1)

        return _Sums(self.counts, chosen(self.sums), chosen(self.products), self.powers[first:end])

    def errors(self, weights: Tensor, constants: Tensor) -> Tensor:
        """(K,) mean squared error over rows of `_Centred.solve`'s result; up to a constant if channels are left out."""
        features = len(weights)
        gram, moments = self.products[:, :features], self.products[:, features:]
        of_weights = (weights * (gram @ weights - 2 * moments)).sum(0)
        left = self.sums[:, features:] - self.sums[:, :features] @ weights  # (P, K * D)
        of_constants = (constants * (self.counts[:, None] * constants - 2 * left)).sum(0)
        explained: Tensor = (of_weights + of_constants).reshape(len(self.powers), -1).sum(1)
        return (self.powers + explained) / max(1, self.rows)


@dataclass(frozen=True)
class _Centred:
    """The normal equations of a ridge with the means subtracted, overall or by position, so without the constants."""

    gram: Tensor
    """(F, F)"""
    moments: Tensor
    """(F, K * D)"""
    means: Tensor
    """(P, F + K * D)"""
    floor: float
    """Added to the ridge, so that rounding errors of constant features do not count as variance."""

    @classmethod
    def of(cls, sums: _Sums, by_position: bool) -> _Centred:
        features = len(sums.products)
        overall, totals = sums.sums.sum(0) / max(1, sums.rows), sums.sums.sum(0, keepdim=True)
        means = overall[None]
        if by_position:
            known = sums.counts[:, None] > 0
            means, totals = torch.where(known, sums.sums / sums.counts.clamp(min=1)[:, None], overall), sums.sums
        centred = torch.addmm(sums.products, totals[:, :features].T, means, alpha=-1)
        floor = 1e-12 * sums.products.diagonal().mean().item() + 1e-30
        means = means.expand(len(sums.counts), -1)
        return cls(centred[:, :features], centred[:, features:], means, floor)

    def factor(self, strength: float) -> Tensor:
        """(F, F) Cholesky factor. The ridge grows until one exists: float32 products may leave none for a weak one."""
        ridge = strength * self.gram.diagonal().mean() + self.floor
        while True:
            gram = self.gram.clone()
            gram.diagonal().add_(ridge)
            triangle: Tensor
            triangle, failed = torch.linalg.cholesky_ex(gram)
            if not failed or not ridge.isfinite():
                return triangle
            ridge = 10 * ridge

    def solve(self, triangle: Tensor, columns: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Weights (F, c) under the ridge of `triangle`, and free constants (P, c), of c `columns` of the K * D."""
        features = len(self.gram)
        weights = torch.cholesky_solve(self.moments[:, columns], triangle)
        return weights, self.means[:, features:][:, columns] - self.means[:, :features] @ weights


class RidgeMoments:
    """The normal equations of `horizons` maps from `steps` past steps, summed over batches."""

    def __init__(self, steps: int, horizons: int) -> None:
        self._steps, self._horizons = steps, horizons
        self._reaches = sorted({horizons >> halvings for halvings in range(horizons.bit_length())})
        """Numbers of horizons that rows may have, such as 1, 2, 4 and 8."""
        self._sums: dict[tuple[bool, int], _Sums] = {}
        """By whether rows are held out, and by how many horizons they have, rounded down to a reach: so there are few
        Gram matrices."""

    def sums(self) -> dict[tuple[bool, int, str], Tensor]:
        """All moments; additive over processes."""
        return {(*key, name): tensor for key, part in self._sums.items() for name, tensor in vars(part).items()}

    def put(self, sums: Mapping[tuple[bool, int, str], Tensor]) -> None:
        """Replace all moments."""
        keys = sorted({(held_out, reach) for held_out, reach, _ in sums})
        names = _Sums.__dataclass_fields__
        self._sums = {key: _Sums(*(sums[(*key, name)] for name in names)) for key in keys}

    def add(self, batch: LatentBatch, boundaries: Sequence[int], number: int = 0) -> None:
        """Add the rows of `batch`, the `number`th one: the steps of its targets around each of the `boundaries`."""
        usable = [boundary for boundary in boundaries if boundary >= self._steps]
        positions = batch.targets.shape[2] * batch.targets.shape[3]
        stride = math.ceil(len(usable) * positions / ROWS_PER_CLIP)
        held_out = (number + torch.arange(len(batch))) % HELD_OUT_EVERY == 1
        rows: dict[tuple[bool, int], list[tuple[Tensor, Tensor, slice]]] = {}
        for turn, boundary in enumerate(usable, start=number):
            chosen = slice(turn % stride, None, stride)  # positions take turns
            ahead = batch.valid[:, boundary : boundary + self._horizons].cpu().long().cumprod(1).sum(1)  # (B,)
            for (reach, end), held in product(pairwise([*self._reaches, self._horizons + 1]), (False, True)):
                clips = ((reach <= ahead) & (ahead < end) & (held_out == held)).nonzero()[:, 0]
                if len(clips):
                    rows.setdefault((held, reach), []).append(self._rows(batch.targets, clips, boundary, chosen, reach))
        for key, blocks in rows.items():
            if key not in self._sums:
                sizes = blocks[0][0].shape[2], blocks[0][1].shape[2:].numel(), key[1]
                device = batch.targets.device
                self._sums[key] = _Sums.none(positions, *sizes, torch.device("cpu") if device.type == "mps" else device)
            self._sums[key].add(blocks)

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
        maps += maps[-1:] * (self._horizons - len(maps))  # for horizons where every training clip is padded
        weights, constants, choices = zip(*maps, strict=True)
        return Ridge(torch.stack(weights), torch.stack(constants), self._steps, choices)

    def _rows(
        self, latents: Tensor, clips: Tensor, boundary: int, chosen: slice, reach: int
    ) -> tuple[Tensor, Tensor, slice]:
        """A block for `_Sums.add`: features (b, p, F) and targets (b, p, reach, D) of `clips` around a boundary."""
        rows = latents[:, boundary - self._steps : boundary + reach].flatten(2, 3)[:, :, chosen]
        rows = rows[clips.to(latents.device)].transpose(1, 2).float()  # (b, p, k + reach, D)
        return rows[:, :, : self._steps].flatten(2), rows[:, :, self._steps :], chosen

    def _total(self, held_out: bool, first: int, end: int) -> _Sums | None:
        """The moments of all rows that have the horizons `first` to `end` - 1; None if there are none."""
        found = [part for (held, reach), part in self._sums.items() if held == held_out and reach >= end]
        return _add_up([part.of_horizons(first, end) for part in found]) if found else None


def _fit(learner: _Sums | None, judge: _Sums | None) -> list[_Map]:
    """The map of each horizon, fitted to the rows of both, of which one may be missing."""
    everything = _add_up([part for part in (learner, judge) if part is not None])
    choices = _choose(learner or everything, judge or everything)
    channels = everything.channels
    systems = {by_position: _Centred.of(everything, by_position) for by_position in {choice[1] for choice in choices}}
    triangles = {choice: systems[choice[1]].factor(choice[0]) for choice in set(choices)}
    maps = []
    for horizon, choice in enumerate(choices):
        columns = slice(horizon * channels, (horizon + 1) * channels)
        weights, constants = systems[choice[1]].solve(triangles[choice], columns)
        maps.append((weights.float(), constants.float(), choice))
    return maps


def _choose(learner: _Sums, judge: _Sums) -> list[Choice]:
    """For each horizon the choice with the least error on the rows of `judge`, if fitted to those of `learner`."""
    horizons = len(judge.powers)
    stride = math.ceil(judge.channels / JUDGED_CHANNELS)
    learner, judge = (part.of_horizons(0, horizons, stride) for part in (learner, judge))
    own, shared = (_Centred.of(learner, by_position) for by_position in (True, False))
    errors = torch.stack([judge.errors(*own.solve(own.factor(strength))) for strength in STRENGTHS])  # (strengths, K)
    strengths = [STRENGTHS[best] for best in errors.argmin(0).tolist()]
    rivals = {strength: judge.errors(*shared.solve(shared.factor(strength))) for strength in set(strengths)}
    least = errors.amin(0).tolist()
    return [(strength, least[k] < rivals[strength][k].item()) for k, strength in enumerate(strengths)]


def _add_up(parts: Sequence[_Sums]) -> _Sums:
    """The moments of the rows of all `parts`, which have the same horizons."""
    total = parts[0]
    for part in parts[1:]:
        total = _Sums(*(one + other for one, other in zip(vars(total).values(), vars(part).values(), strict=True)))
    return total
