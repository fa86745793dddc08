"""Where the largest shape of each of the demo's videos is, and a linear probe that reads it from latents.

V clips, T steps, P numbers that a probe sees of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flcache.videos.synthetic import shape_centres

FRAMES, SIZE = 32, 64
"""Of the demo's videos."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
"""Of the ridge, for inputs of unit variance; the one with the least error on a fifth of the clips is taken."""


class Samples(NamedTuple):
    """Inputs of a probe, and what it must find."""

    inputs: Tensor
    """(V, T, P)"""
    places: Tensor
    """(V, T, 2)"""


def centres(clip_ids: Sequence[str], clip_frames: int, steps: int) -> Tensor:
    """(V, T, 2) row and column, as fractions of the picture, a mean over each of the `steps` of clips that follow each
    other in their video, `clip_frames` each."""
    found = []
    for clip_id in clip_ids:
        split, first = {"t": "train", "v": "val"}[clip_id[0]], int(clip_id.rpartition("-")[2]) * clip_frames
        whole = torch.from_numpy(shape_centres(split, int(clip_id[1:7]), frames=FRAMES, size=SIZE))  # (F, 2)
        found.append(whole[first : first + clip_frames])
    return torch.stack(found).unflatten(1, (steps, -1)).mean(2) / SIZE


def probe_error(train: Samples, test: Samples) -> float:
    """Mean distance, as a fraction of the picture, of a ridge regression fitted to `train`, on `test`."""
    return float(probe_distances(train, test).mean())


def probe_distances(train: Samples, test: Samples) -> Tensor:
    """(V, T) the distances of which `probe_error` is the mean."""
    mean, std = train.inputs.mean((0, 1)), train.inputs.std((0, 1)) + 1e-6
    train, test = (Samples((each.inputs - mean) / std, each.places) for each in (train, test))
    held_out = torch.arange(len(train.inputs)) < len(train.inputs) // 5
    fitted, judged = (Samples(train.inputs[chosen], train.places[chosen]) for chosen in (~held_out, held_out))
    best = min(PENALTIES, key=lambda penalty: float(_distances(fitted, judged, penalty).mean()))
    return _distances(train, test, best)


def _distances(train: Samples, test: Samples, penalty: float) -> Tensor:
    inputs, places = (each.flatten(0, 1).double() for each in train)
    level = places.mean(0)
    weights = _ridge(inputs, places - level, penalty * len(inputs))
    return (test.inputs.double() @ weights + level - test.places.double()).norm(dim=-1)


def _ridge(inputs: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Weights (P, 2) from `inputs` (N, P) to `targets` (N, 2), by the smaller of the two systems of equations."""
    rows, columns = inputs.shape
    if columns > rows:
        gram = inputs @ inputs.T + penalty * torch.eye(rows, dtype=inputs.dtype)
        return inputs.T @ torch.linalg.solve(gram, targets)
    gram = inputs.T @ inputs + penalty * torch.eye(columns, dtype=inputs.dtype)
    return torch.linalg.solve(gram, inputs.T @ targets)
