"""Ridge regression in closed form: every horizon has a linear map of its own from the last k true steps.

Each patch is predicted from the same patch at the last k steps, channels mixed: k * D x D weights a horizon, shared by
all positions. A map that is fed its own predictions instead multiplies whatever it gets wrong by itself, horizon after
horizon. The weights solve normal equations that are summed up while the training clips stream by, in float32 over a
batch and in float64 over batches, so memory does not grow with their number: for D = 1024, k = 3 and 8 horizons they
hold 1.4 GB, and solving takes as much again.

The constant is one for all positions, or one for each; then a prediction cannot be worse than the dataset mean on the
rows it is fitted to. How strong the ridge is, and then which of the two, has the least error on every eighth clip,
horizon by horizon; the same sums give that error without a second look at the data. `JUDGED_CHANNELS` of the channels
that are predicted tell enough for that. All clips then give the weights.

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
"""Of a clip's boundaries times positions, which are far more rows than there are weights."""
HELD_OUT_EVERY = 8
"""Every which clip chooses the strength."""
JUDGED_CHANNELS = 128
"""At most so many of the channels of a target choose it."""

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
    """Moments of rows, in float64: features x (F) at a position, targets y (D) of K horizons."""

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

    @property
    def channels(self) -> int:
        """D"""
        return (self.products.shape[1] - len(self.products)) // len(self.powers)

    def add(self, features: Tensor, targets: Tensor, positions: slice) -> None:
        """Add features (b, p, F) and targets (b, p, K, D) of every clip's p `positions`."""
        self.add_rows([(features, targets, positions)])

    def add_rows(self, blocks: Sequence[tuple[Tensor, Tensor, slice]]) -> None:
        """`add` for several blocks, whose products are one multiplication of matrices."""
        rows = [
            torch.cat((features, targets.flatten(2)), dim=2) for features, targets, _ in blocks
        ]  # (b, p, F + K * D)
        for part, (_, targets, positions) in zip(rows, blocks, strict=True):
            self.counts[positions] += len(part)
            add_exactly(self.sums[positions], part.sum(0))
            add_exactly(self.powers, targets.square().sum(dim=(0, 1, 3)))
        joint = torch.cat([part.flatten(0, 1) for part in rows])
        add_exactly(self.products, joint[:, : len(self.products)].T @ joint)

    def of_horizons(self, first: int, end: int, stride: int = 1) -> _Sums:
        """The moments of the horizons `first` to `end`, without it, and of every `stride`th channel of the targets."""
        features, horizons = len(self.products), len(self.powers)
        sums, products = (
            torch.cat(
                (part[:, :features], _by_horizon(part[:, features:], horizons)[:, first:end, ::stride].flatten(1)), 1
            )
            for part in (self.sums, self.products)
        )
        return _Sums(self.counts, sums, products, self.powers[first:end])

    def solve(self, choice: Choice) -> tuple[Tensor, Tensor]:
        """Weights (F, K * D) under a ridge, and constants (P, K * D) that are free of it."""
        strength, by_position = choice
        return _Centred.of(self, by_position).solve(strength)

    def errors(self, weights: Tensor, constants: Tensor) -> Tensor:
        """(K,) mean over rows of the squared error of what `solve` gives; of some channels, up to a constant."""
        features = len(weights)
        gram, moments = self.products[:, :features], self.products[:, features:]
        of_weights = (weights * (gram @ weights - 2 * moments)).sum(0)
        left = self.sums[:, features:] - self.sums[:, :features] @ weights  # (P, K * D)
        of_constants = (constants * (self.counts[:, None] * constants - 2 * left)).sum(0)
        explained: Tensor = (of_weights + of_constants).reshape(len(self.powers), -1).sum(1)
        return (self.powers + explained) / max(1, self.rows)


@dataclass(frozen=True)
class _Centred:
    """The normal equations of a ridge without the constants, which are one for all positions or one for each."""

    gram: Tensor
    """(F, F)"""
    moments: Tensor
    """(F, K * D)"""
    means: Tensor
    """(P, F + K * D)"""
    floor: float
    """What rounding leaves of features that never vary must not look like a variance."""

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
        """(F, F) Cholesky's triangle; products in float32 may leave none for a weak ridge, which then grows."""
        ridge = strength * self.gram.diagonal().mean() + self.floor
        while True:
            gram = self.gram.clone()
            gram.diagonal().add_(ridge)
            triangle: Tensor
            triangle, failed = torch.linalg.cholesky_ex(gram)
            if not failed or not ridge.isfinite():
                return triangle
            ridge = 10 * ridge

    def solve(self, strength: float) -> tuple[Tensor, Tensor]:
        return self.solve_with(self.factor(strength), slice(None))

    def solve_with(self, triangle: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
        """The weights and constants of some columns of the K * D."""
        features = len(self.gram)
        weights = torch.cholesky_solve(self.moments[:, columns], triangle)
        return weights, self.means[:, features:][:, columns] - self.means[:, :features] @ weights


class RidgeMoments:
    """The normal equations of `horizons` maps from `steps` past steps, summed up batch by batch."""

    def __init__(self, steps: int, horizons: int) -> None:
        self._steps, self._horizons = steps, horizons
        self._reaches = sorted({horizons >> halvings for halvings in range(horizons.bit_length())})
        """Numbers of horizons that rows may have, such as 1, 2, 4 and 8."""
        self._sums: dict[tuple[bool, int], _Sums] = {}
        """By whether they are held out, and by how many horizons the rows have, rounded down to one of the reaches: the
        horizons between two of these share a Gram matrix, so that there are few."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self._sums.values())

    def sums(self) -> dict[tuple[bool, int, str], Tensor]:
        """Those over the batches of several processes are the sums of theirs."""
        return {(*key, name): tensor for key, part in self._sums.items() for name, tensor in vars(part).items()}

    def put(self, sums: Mapping[tuple[bool, int, str], Tensor]) -> None:
        """Go on from these sums."""
        keys = sorted({(held_out, reach) for held_out, reach, _ in sums})
        names = _Sums.__dataclass_fields__
        self._sums = {key: _Sums(*(sums[(*key, name)] for name in names)) for key in keys}

    def add(self, batch: LatentBatch, boundaries: Sequence[int], number: int = 0) -> None:
        """Learn from the targets' latents of `batch`, which has that number, what follows the `boundaries`."""
        usable = [boundary for boundary in boundaries if boundary >= self._steps]
        positions = batch.targets.shape[2] * batch.targets.shape[3]
        stride = math.ceil(len(usable) * positions / ROWS_PER_CLIP)
        held_out = (number + torch.arange(len(batch))) % HELD_OUT_EVERY == 1
        rows: dict[tuple[bool, int], list[tuple[Tensor, Tensor, slice]]] = {}
        for turn, boundary in enumerate(usable, start=number):
            chosen = slice(turn % stride, None, stride)  # every position has its turn, whatever the stride
            ahead = batch.valid[:, boundary : boundary + self._horizons].cpu().long().cumprod(1).sum(1)  # (B,)
            for (reach, end), held in product(pairwise([*self._reaches, self._horizons + 1]), (False, True)):
                clips = ((reach <= ahead) & (ahead < end) & (held_out == held)).nonzero()[:, 0]
                if len(clips):
                    rows.setdefault((held, reach), []).append(self._rows(batch.targets, clips, boundary, chosen, reach))
        for key, blocks in rows.items():
            if key not in self._sums:
                sizes = blocks[0][0].shape[2], blocks[0][1].shape[2:].numel(), key[1]
                self._sums[key] = _Sums.none(positions, *sizes, _accumulating(batch.targets.device))
            self._sums[key].add_rows(blocks)

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

    def _rows(
        self, latents: Tensor, clips: Tensor, boundary: int, chosen: slice, reach: int
    ) -> tuple[Tensor, Tensor, slice]:
        """Features (b, p, F) and targets (b, p, reach, D) of `clips` around a boundary, as `_Sums.add` takes them."""
        rows = latents[:, boundary - self._steps : boundary + reach].flatten(2, 3)[:, :, chosen]
        rows = rows[clips.to(latents.device)].transpose(1, 2).float()  # (b, p, k + reach, D)
        return rows[:, :, : self._steps].flatten(2), rows[:, :, self._steps :], chosen

    def _total(self, held_out: bool, first: int, end: int) -> _Sums | None:
        """Of all rows that have the horizons `first` to `end`, without it; None if there are none."""
        found = [part for (held, reach), part in self._sums.items() if held == held_out and reach >= end]
        return _add_up([part.of_horizons(first, end) for part in found]) if found else None


def _fit(learner: _Sums | None, judge: _Sums | None) -> list[_Map]:
    """The map of each horizon, from the rows of both; one of the two may be missing."""
    everything = _add_up([part for part in (learner, judge) if part is not None])
    choices = _choose(learner or everything, judge or everything)
    channels = everything.channels
    systems = {by_position: _Centred.of(everything, by_position) for by_position in {choice[1] for choice in choices}}
    triangles = {choice: systems[choice[1]].factor(choice[0]) for choice in set(choices)}
    maps = []
    for horizon, choice in enumerate(choices):
        columns = slice(horizon * channels, (horizon + 1) * channels)
        weights, constants = systems[choice[1]].solve_with(triangles[choice], columns)
        maps.append((weights.float(), constants.float(), choice))
    return maps


def _choose(learner: _Sums, judge: _Sums) -> list[Choice]:
    """For each horizon what has the least error on the rows of `judge`, learnt from those of `learner`."""
    horizons = len(judge.powers)
    stride = math.ceil(judge.channels / JUDGED_CHANNELS)
    learner, judge = (part.of_horizons(0, horizons, stride) for part in (learner, judge))
    own, shared = (_Centred.of(learner, by_position) for by_position in (True, False))
    errors = torch.stack([judge.errors(*own.solve(strength)) for strength in STRENGTHS])  # (strengths, K)
    strengths = [STRENGTHS[best] for best in errors.argmin(0).tolist()]
    rivals = {strength: judge.errors(*shared.solve(strength)) for strength in set(strengths)}
    least = errors.amin(0).tolist()
    return [(strength, least[k] < rivals[strength][k].item()) for k, strength in enumerate(strengths)]


def _add_up(parts: Sequence[_Sums]) -> _Sums:
    """The moments of all rows of `parts`, which are of the same horizons."""
    total = parts[0]
    for part in parts[1:]:
        total = _Sums(*(one + other for one, other in zip(vars(total).values(), vars(part).values(), strict=True)))
    return total


def _by_horizon(columns: Tensor, horizons: int) -> Tensor:
    """(n, K * D) as (n, K, D)."""
    return columns.reshape(len(columns), horizons, -1)


def _accumulating(device: torch.device) -> torch.device:
    """Where sums in float64 are kept: on the CPU where the device has none (Apple's MPS)."""
    return torch.device("cpu") if device.type == "mps" else device
