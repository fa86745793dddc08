"""Does a context depend on the future? Change every later pixel and see whether it moves."""

from __future__ import annotations

import torch
from torch import Tensor

from flcache.encoder.model import LatentVideoModel


def distance(before: Tensor, after: Tensor) -> float:
    """RMS of the difference of two sets of latents over the RMS of the first: 0 only where all values are equal."""
    before, after = before.double(), after.double()
    scale = before.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return ((after - before).square().mean().sqrt() / scale).item()


@torch.inference_mode()
def change_future(model: LatentVideoModel, frames: Tensor, boundary: int) -> tuple[Tensor, float, float]:
    """Invert every pixel of `frames` (F, h, w, 3) uint8 from step `boundary` on.

    Returns the latents (T, H, W, D) of the unchanged clip, and the `distance` that its context and its targets moved.
    Where even the targets do not move, the test proves nothing.
    """
    first = boundary * model.tubelet_size
    changed = torch.cat((frames[:first], 255 - frames[first:]))
    before, after = model([frames])[0], model([changed])[0]  # two calls of one size, which rounding depends on
    return before, distance(before[:boundary], after[:boundary]), distance(before[boundary:], after[boundary:])
