"""Channel statistics of a batch, over all processes that train.

Sums over processes are differentiable: each process computes one loss from them, and data parallelism averages the
gradients, so that they are those of one process with all clips.
"""

from __future__ import annotations

import torch.distributed
import torch.distributed.nn
from torch import Tensor

from flcache.batch import ChannelStatistics

LEAST_DEVIATION = 0.01
"""Of a channel, relative to all: one that is constant in a batch is not blown up to unit size."""


def over_processes(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, with gradient."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return tensor
    total: Tensor = torch.distributed.nn.functional.all_reduce(tensor)  # type: ignore[no-untyped-call]
    return total


def batch_moments(latents: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (D,) of the tokens of `latents` (B, T, H, W, D) in `valid` steps (B, T), and their number; zero
    without any."""
    latents, weights = latents.float(), valid[:, :, None, None, None].float()
    tokens = over_processes(weights.sum() * latents.shape[2] * latents.shape[3])
    mean = over_processes((weights * latents).sum((0, 1, 2, 3))) / tokens.clamp(min=1)
    squares = (weights * (latents - mean).square()).sum((0, 1, 2, 3))
    return mean, over_processes(squares) / tokens.clamp(min=1), tokens


def as_statistics(mean: Tensor, variance: Tensor) -> ChannelStatistics:
    """What latents of these moments are standardised with."""
    least = LEAST_DEVIATION**2 * variance.mean()
    return ChannelStatistics(mean, variance.maximum(least).clamp(min=torch.finfo(torch.float32).tiny).sqrt())
