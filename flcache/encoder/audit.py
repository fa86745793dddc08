"""Does a context really not depend on the future? Change every later pixel and see whether a bit moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flcache.encoder.model import LatentVideoModel


@dataclass(frozen=True)
class Distance:
    """Between two sets of latents."""

    identical: bool
    """Every bit is the same."""
    relative: float
    """RMS of the difference over RMS of the first."""


@dataclass(frozen=True)
class FutureTest:
    """What changing every pixel after a boundary did to one clip."""

    context: Distance
    targets: Distance
    """These must move: if they do not, the test shows nothing."""


def distance(before: Tensor, after: Tensor) -> Distance:
    """How far two sets of latents, of one shape, are apart."""
    before, after = before.double(), after.double()
    scale = before.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    relative = (after - before).square().mean().sqrt() / scale
    return Distance(torch.equal(before, after), relative.item())


@torch.inference_mode()
def change_future(model: LatentVideoModel, frames: Tensor, boundary: int) -> tuple[Tensor, FutureTest]:
    """Latents (T, H, W, D) of `frames` (F, h, w, 3) uint8, and what inverting every later pixel does."""
    first = boundary * model.tubelet_size
    changed = torch.cat((frames[:first], 255 - frames[first:]))
    before, after = model([frames])[0], model([changed])[0]  # in passes of the same size, which rounding depends on
    test = FutureTest(distance(before[:boundary], after[:boundary]), distance(before[boundary:], after[boundary:]))
    return before, test
