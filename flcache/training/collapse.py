"""Watch the latents of a trainable encoder: a collapsing run stops with an error instead of a fine-looking loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flcache.errors import TrainingError

FLOORS = {"deviation": 0.1, "rank": 0.1, "change": 0.02}
"""The parts of what they were at the start below which latents are collapsing. `change` differs most between batches:
a sound one of calm videos has a tenth of that of others."""


@dataclass(frozen=True)
class LatentHealth:
    """How spread out a batch of latents is."""

    deviation: float
    """Mean over channels of the standard deviation over all tokens of the batch."""
    rank: float
    """Effective rank: exponential of the entropy of the normalised singular values (RankMe, arXiv 2210.02885)."""
    change: float
    """Variance over the steps of a clip, as a share of that over all tokens of the batch; 0 where nothing changes."""


@torch.no_grad()
def latent_health(latents: Tensor, *, max_tokens: int = 2048) -> LatentHealth:
    """Spread of latents (B, T, H, W, D); the rank is of at most `max_tokens` tokens taken at equal distances."""
    latents = latents.detach().float()
    tokens = latents.flatten(0, -2)
    whole = tokens.var(0, unbiased=False).mean().clamp_min(1e-12)
    change = latents.var(1, unbiased=False).mean() / whole
    tokens = tokens[:: max(1, len(tokens) // max_tokens)]
    singular = torch.linalg.svdvals(tokens - tokens.mean(0))
    share = singular / singular.sum().clamp_min(1e-12)
    entropy = -(share * (share + 1e-12).log()).sum()
    return LatentHealth(float(tokens.std(0).mean()), float(entropy.exp()), float(change))


def check_collapse(now: LatentHealth, start: LatentHealth, *, step: int) -> None:
    """Raises TrainingError once one of `FLOORS` is broken."""
    for name, floor in FLOORS.items():
        value, before = getattr(now, name), getattr(start, name)
        if value < floor * before:
            raise TrainingError(
                f"step {step}: the latents are collapsing: their {name} fell from {before:.3g} to {value:.3g}; lower "
                f'"training.learning_rate", raise "training.ema_decay", or unfreeze fewer layers'
            )
