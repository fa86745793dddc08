"""Rotary positions on three axes: time in seconds, rows and columns in tokens.

Attention then depends on differences of positions only, and another frame rate is another spacing of times rather than
another meaning of "next". Source: RoFormer (arXiv 2104.09864), divided among axes as in V-JEPA 2 (arXiv 2506.09985).

Shapes: B clips, T steps, H x W token grid, L = T * H * W tokens, P = head_dim / 2 pairs of channels that are rotated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHORTEST_PERIOD_S = 1.0
"""The fastest time pair turns once a second: half a turn between steps of two frames at 4 frames per second."""
LONGEST_PERIOD_S = 128.0
"""The slowest pair: no two steps of a clip shorter than this have the same angle."""
GRID_BASE = 100.0
"""Rows and columns turn by 1 down to nearly 1/100 radian per token, the usual range for vision transformers."""

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of every angle, each (B, L, 1, P)."""


def rotation(times: Tensor, height: int, width: int, head_dim: int) -> Rotation:
    """The rotation of every token of steps at `times` (B, T) seconds on a `height` x `width` grid, time-major.

    A third of the pairs goes to the rows, a third to the columns, the rest to time. `head_dim` is even and >= 6.
    """
    device, pairs = times.device, head_dim // 2
    grid_pairs = pairs // 3
    grid_rates = GRID_BASE ** -(torch.arange(grid_pairs, device=device).float() / grid_pairs)  # radians per token
    rows, columns = (torch.arange(size, device=device).float()[:, None] * grid_rates for size in (height, width))
    shortest, longest = math.log2(SHORTEST_PERIOD_S), math.log2(LONGEST_PERIOD_S)
    periods = torch.logspace(shortest, longest, pairs - 2 * grid_pairs, 2.0, device=device)
    seconds = times.float()[..., None] * (2 * math.pi / periods)  # (B, T, P/3)
    grid = (*times.shape, height, width, -1)
    angles = torch.cat(
        (seconds[:, :, None, None].expand(grid), rows[:, None].expand(grid), columns.expand(grid)), dim=-1
    ).reshape(times.shape[0], -1, 1, pairs)
    return angles.cos(), angles.sin()


def rotate(channels: Tensor, by: Rotation) -> Tensor:
    """`channels` (B, L, heads, head_dim) turned pair by pair; the pairs are (p, p + P)."""
    cosine, sine = by
    first, second = channels.chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(channels.dtype)
