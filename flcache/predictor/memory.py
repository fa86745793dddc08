"""How much memory a training step of a predictor takes, from its shape alone.

Counted in float32: weights, their gradients and AdamW's two moments, and what autograd keeps of every token of every
block until the backward pass. Measured on a CPU by `tests/benchmarks/predictor_step.py`.
"""

from __future__ import annotations

import torch

from flcache.predictor.attention import QUERY_TOKENS
from flcache.predictor.presets import PredictorOptions, PredictorShape, build_shape

FLOAT_BYTES = 4
STATES = 4
"""Numbers a parameter: itself, its gradient, and two moments."""
BLOCK_WIDTHS = 10
"""What a block keeps of a token, in widths: its input, the norm of it, queries, keys and values in one piece, rotated
queries and keys, what they attended to, the sum with the input, and the norm of that."""
END_CHANNELS = 7
"""What the two ends keep of a token, in channels of its patches: latents in and out, the change, the targets, and the
loss with what it passes back."""

ALLOCATOR = 1.15
"""What glibc takes from the machine for activations, over what is in use: 1.0 to 1.3 were measured."""


def training_memory_bytes(
    shape: PredictorShape,
    options: PredictorOptions,
    *,
    latent_shape: tuple[int, int, int, int],
    batch_size: int,
    rollout_steps: int,
) -> int:
    """Bytes at the peak of a training step on `batch_size` clips of `latent_shape` (T, H, W, D), in float32.

    Without the batch itself, the encoder, and the some 100 MB that torch takes.
    """
    steps, height, width, channels = latent_shape
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in build_shape(shape, channels, options).parameters())
    step_tokens = height * width // shape.merge**2
    tokens = batch_size * step_tokens * (steps - 1 if options.kind == "causal" else steps)
    kept = tokens * _kept_of_token(shape, options, step_tokens * (steps - 1))
    if options.kind == "causal" and rollout_steps > 1:
        kept += batch_size * step_tokens * _kept_by_rollout(shape, options, steps, rollout_steps)
    ends = tokens * END_CHANNELS * channels * shape.merge**2
    return FLOAT_BYTES * (STATES * parameters + round(ALLOCATOR * (kept + ends)))


def _kept_of_token(shape: PredictorShape, options: PredictorOptions, clip_tokens: int) -> int:
    """Numbers kept of one token until the backward pass reaches it, over all blocks."""
    grouped = options.kind == "causal" and options.attention == "joint" and clip_tokens > QUERY_TOKENS
    block = (BLOCK_WIDTHS + grouped) * shape.width + 2 * shape.mlp_width
    depth = shape.depth / 2 if options.kind == "cross_attention" else shape.depth  # half for context, half for targets
    if options.checkpoint_activations:
        return round(depth * shape.width + 2 * block)  # one block anew, with its gradients
    return round(depth * block)


def _kept_by_rollout(shape: PredictorShape, options: PredictorOptions, steps: int, rollout_steps: int) -> int:
    """Numbers kept of each place of a clip by a rollout that ends where the clip does."""
    rolled = min(rollout_steps, steps - 1) - 1
    block = BLOCK_WIDTHS * shape.width + 2 * shape.mlp_width
    pasts = sum(2 * shape.width * (steps - rolled + step) for step in range(rolled))  # keys and values are copied
    return shape.depth * (rolled * (shape.width if options.checkpoint_activations else block) + pasts)
