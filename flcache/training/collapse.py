"""Watch the latents of a trainable encoder: a collapsing run stops with an error instead of a fine-looking loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flcache.errors import TrainingError


@dataclass(frozen=True)
class LatentHealth:
    """How spread out a batch of latents is."""

    deviation: float
    """Mean over channels of the standard deviation over all tokens of the batch."""
    rank: float
    """Effective rank: exponential of the entropy of the normalised singular values (RankMe, arXiv 2210.02885)."""


@torch.no_grad()
def latent_health(latents: Tensor, *, max_tokens: int = 2048) -> LatentHealth:
    """Spread of latents (..., D), from at most `max_tokens` tokens taken at equal distances."""
    tokens = latents.detach().float().flatten(0, -2)
    tokens = tokens[:: max(1, len(tokens) // max_tokens)]
    singular = torch.linalg.svdvals(tokens - tokens.mean(0))
    share = singular / singular.sum().clamp_min(1e-12)
    entropy = -(share * (share + 1e-12).log()).sum()
    return LatentHealth(deviation=float(tokens.std(0).mean()), rank=float(entropy.exp()))


def check_collapse(now: LatentHealth, start: LatentHealth, *, step: int, floor: float = 0.1) -> None:
    """Raises TrainingError once deviation or effective rank fell below `floor` of what they were at the start."""
    for name, value, before in (("deviation", now.deviation, start.deviation), ("rank", now.rank, start.rank)):
        if value < floor * before:
            raise TrainingError(
                f"step {step}: the latents are collapsing: their {name} fell from {before:.3g} to {value:.3g}; lower "
                f'"training.learning_rate", raise "training.ema_decay", or unfreeze fewer layers'
            )
