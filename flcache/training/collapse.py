"""Detects collapsing latents of a trainable encoder, which the loss does not show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flcache.errors import TrainingError

FLOORS = {"deviation": 0.1, "rank": 0.1, "change": 0.02}
"""Fractions of the values at the start; below one of them, latents are collapsing. `change` varies most with the batch:
one of calm videos has a tenth of that of others."""
RANK_TOKENS = 2048
"""At most so many tokens, at equal distances, are used for the rank."""


@dataclass(frozen=True)
class LatentHealth:
    """How spread out a batch of latents is."""

    deviation: float
    """Mean over channels of the standard deviation over all tokens of the batch."""
    rank: float
    """Effective rank: exponential of the entropy of the normalised singular values (RankMe, arXiv 2210.02885)."""
    change: float
    """Variance over the steps of a clip, as a fraction of that over all tokens of the batch."""
    copy_last: float = 0.0
    """Squared error of copying each step to the next, as a fraction of that variance; logged, not watched."""


@torch.no_grad()
def latent_health(latents: Tensor) -> LatentHealth:
    """Spread of latents (B, T, H, W, D)."""
    latents = latents.detach().float()
    tokens = latents.flatten(0, -2)
    whole = tokens.var(0, unbiased=False).mean().clamp_min(1e-12)
    change = latents.var(1, unbiased=False).mean() / whole
    copied = latents.diff(dim=1).square().mean() / whole if latents.shape[1] > 1 else whole.new_zeros(())
    tokens = tokens[:: max(1, len(tokens) // RANK_TOKENS)]
    singular = torch.linalg.svdvals(tokens - tokens.mean(0))
    share = singular / singular.sum().clamp_min(1e-12)
    entropy = -(share * (share + 1e-12).log()).sum()
    return LatentHealth(float(tokens.std(0).mean()), float(entropy.exp()), float(change), float(copied))


def check_collapse(now: LatentHealth, start: LatentHealth, *, step: int) -> None:
    """Raises TrainingError if a value is below its fraction in `FLOORS` of the value at the start."""
    for name, floor in FLOORS.items():
        value, before = getattr(now, name), getattr(start, name)
        if value < floor * before:
            raise TrainingError(
                f"step {step}: the latents are collapsing: their {name} fell from {before:.3g} to {value:.3g}; set "
                '"training.anti_collapse", lower "training.learning_rate", raise "training.ema_decay", or unfreeze '
                "fewer layers"
            )
