"""How much memory a training step of a predictor takes, before any of it is allocated.

Counted in float32: weights, their gradients, AdamW's two moments and a moving average, and `Predictor.kept_numbers`.
Measured on a CPU by `tests/benchmarks/predictor_step.py`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from flcache.predictor.interface import LatentShape
from flcache.predictor.options import PredictorOptions
from flcache.predictor.registry import build_predictor

FLOAT_BYTES = 4
STATES = 4
"""Numbers kept of a parameter: itself, its gradient, and two moments."""
ALLOCATOR = 1.15
"""Memory that glibc takes from the machine for activations over what is in use: 1.0 to 1.3 were measured."""


def training_memory_bytes(
    options: PredictorOptions, latent_shape: LatentShape, *, batch_size: int, rollout_steps: int, averaged: bool = False
) -> int:
    """Bytes at the peak of a training step on `batch_size` clips of `latent_shape` (T, H, W, D), in float32.

    `averaged` if a moving average of the weights is kept.
    Not counted: the batch itself, the encoder, and about 100 MB that torch takes.
    """
    with torch.device("meta"):
        predictor = build_predictor(replace(options, actions=False), latent_shape)  # their embedding is small
    parameters = sum(weight.numel() for weight in predictor.parameters())
    kept = batch_size * predictor.kept_numbers(latent_shape, rollout_steps)
    return FLOAT_BYTES * ((STATES + averaged) * parameters + round(ALLOCATOR * kept))
