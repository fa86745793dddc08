"""Between latents and tokens: patches that share a token, and embeddings of numbers such as times.

Shapes: B clips, T steps, H x W patch grid, D channels of latents; h x w token grid after merging; N = h * w.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from flcache.errors import ConfigError
from flcache.predictor.transformer import initialise

FEATURES = 16
PERIODS = (0.25, 64.0)
"""Shortest and longest period of the sinusoids that a number is embedded by."""


class ScalarEmbedding(nn.Module):
    """Embeds a number, such as how many seconds ahead a token must predict: (...) to (..., width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2 * FEATURES, width), nn.Linear(width, width)
        initialise(self.hidden)
        initialise(self.out)

    def forward(self, numbers: Tensor) -> Tensor:
        shortest, longest = (math.log2(period) for period in PERIODS)
        periods = torch.logspace(shortest, longest, FEATURES, 2.0, device=numbers.device)
        angles = numbers.float()[..., None] * (2 * math.pi / periods)
        features = torch.cat((angles.cos(), angles.sin()), dim=-1)
        embedded: Tensor = self.out(silu(self.hidden(features)))
        return embedded


class ActionEmbedding(nn.Module):
    """Embeds the action of a step, as the dataset has it: (..., A) to (..., width). Standardised inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("std", torch.ones(numbers))
        self.hidden, self.out = nn.Linear(numbers, width), nn.Linear(width, width)
        initialise(self.hidden)
        initialise(self.out)

    def forward(self, actions: Tensor) -> Tensor:
        embedded: Tensor = self.out(silu(self.hidden((actions.float() - self.mean) / self.std)))
        return embedded


def embedding(channels: int, width: int, merge: int) -> nn.Linear:
    """A linear map from the patches of a token to its channels."""
    linear = nn.Linear(channels * merge**2, width)
    initialise(linear)
    return linear


def zero_head(channels: int, width: int, merge: int) -> nn.Linear:
    """A linear map from a token to the change of its patches, which is exactly zero at first."""
    linear = nn.Linear(width, channels * merge**2)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def check_grid(height: int, width: int, merge: int) -> None:
    """Raises ConfigError unless `merge` x `merge` patches tile the grid."""
    if height % merge or width % merge:
        raise ConfigError(
            f"predictor.overrides.merge: {merge} does not divide the latents' grid of {height} x {width} patches; "
            'set "predictor.overrides.merge=1"'
        )


def merge_patches(latents: Tensor, merge: int) -> Tensor:
    """(B, T, H, W, D) to (B, T, H / merge, W / merge, merge * merge * D)."""
    B, T, H, W, D = latents.shape
    check_grid(H, W, merge)
    if merge == 1:
        return latents
    tiles = latents.reshape(B, T, H // merge, merge, W // merge, merge, D).transpose(3, 4)
    return tiles.reshape(B, T, H // merge, W // merge, merge**2 * D)


def unmerge_patches(merged: Tensor, merge: int) -> Tensor:
    """The inverse of `merge_patches`."""
    if merge == 1:
        return merged
    B, T, h, w, channels = merged.shape
    tiles = merged.reshape(B, T, h, w, merge, merge, channels // merge**2).transpose(3, 4)
    return tiles.reshape(B, T, h * merge, w * merge, channels // merge**2)
