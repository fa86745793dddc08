"""The causal predictor: next step from all steps so far, and rollouts of it.

Starts as "copy the last step", exactly: the head is zero and its output is added to the latents of the current step.

Shapes: B clips, T steps, H x W patch grid, D channels of latents; h x w token grid after merging; N = h * w.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from flcache.errors import ConfigError
from flcache.predictor.rotary import rotation
from flcache.predictor.transformer import BlockCausalTransformer, KeyValues, initialise

AHEAD_FEATURES = 16
AHEAD_PERIODS_S = (0.25, 64.0)
"""Between them lie the sinusoids that tell a token how far ahead it is asked to look."""


class CausalPredictor(nn.Module):
    """Predicts each next step of standardised latents from that step's past.

    `merge` x `merge` patches share one token: the cost falls with its square, the prediction keeps its resolution.
    """

    def __init__(self, *, channels: int, depth: int, width: int, heads: int, mlp_width: int, merge: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.merge = merge
        self.embed = nn.Linear(channels * merge**2, width)
        self.ahead = LookAhead(width)
        self.transformer = BlockCausalTransformer(depth, width, heads, mlp_width)
        self.head = nn.Linear(width, channels * merge**2)
        initialise(self.embed)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, latents: Tensor, times: Tensor, next_times: Tensor) -> Tensor:
        """Teacher forcing: from `latents` (B, T, H, W, D) at `times` (B, T) seconds, those at `next_times` (B, T).

        Prediction t, of the same shape, depends on the steps <= t alone, whatever follows them.
        """
        origin = times[:, :1]
        return self._predict_next(latents, times - origin, next_times - origin)

    def predict(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        """Roll out: (B, Tc, H, W, D) at (B, Tc) seconds to (B, Tt, H, W, D) at (B, Tt) seconds, step by step.

        Every prediction is the input of the next. Gradients flow through all of it unless the caller disables them.
        """
        steps, targets = context.shape[1], target_times.shape[1]
        times = torch.cat((context_times, target_times), dim=1) - context_times[:, :1]  # (B, Tc + Tt)
        seen = [KeyValues() for _ in self.transformer.blocks]
        step = self._predict_next(context, times[:, :steps], times[:, 1 : steps + 1], seen)[:, -1:]
        predicted = [step]
        for now in range(steps, steps + targets - 1):
            step = self._predict_next(step, times[:, now : now + 1], times[:, now + 1 : now + 2], seen)
            predicted.append(step)
        return torch.cat(predicted, dim=1)

    def _predict_next(
        self, latents: Tensor, times: Tensor, next_times: Tensor, seen: list[KeyValues] | None = None
    ) -> Tensor:
        """`forward` for times that already share an origin; with `seen`, for the steps after those in it."""
        patches = merge_patches(latents, self.merge)  # (B, T, h, w, merge * merge * D)
        height, width = patches.shape[2:4]
        tokens = self.embed(patches.flatten(2, 3)) + self.ahead(next_times - times)[:, :, None]  # (B, T, N, width)
        by = rotation(times, height, width, self.head_dim)
        hidden = self.transformer(tokens.flatten(1, 2), by, height * width, seen)
        change: Tensor = self.head(hidden).unflatten(1, patches.shape[1:4])
        return latents + split_patches(change, self.merge)


class LookAhead(nn.Module):
    """How far ahead a step must be predicted: (B, T) seconds to (B, T, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * AHEAD_FEATURES, width)
        self.out = nn.Linear(width, width)
        initialise(self.hidden)
        initialise(self.out)

    def forward(self, seconds: Tensor) -> Tensor:
        shortest, longest = (math.log2(period) for period in AHEAD_PERIODS_S)
        periods = torch.logspace(shortest, longest, AHEAD_FEATURES, 2.0, device=seconds.device)
        angles = seconds.float()[..., None] * (2 * math.pi / periods)
        features = torch.cat((angles.cos(), angles.sin()), dim=-1)
        embedded: Tensor = self.out(silu(self.hidden(features)))
        return embedded


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


def split_patches(merged: Tensor, merge: int) -> Tensor:
    """The inverse of `merge_patches`."""
    if merge == 1:
        return merged
    B, T, h, w, channels = merged.shape
    tiles = merged.reshape(B, T, h, w, merge, merge, channels // merge**2).transpose(3, 4)
    return tiles.reshape(B, T, h * merge, w * merge, channels // merge**2)
