"""A block-causal transformer: a token of step t attends to every token of the steps <= t.

Pre-norm blocks of attention and MLP, made to be fast on a CPU too: one projection for queries, keys and values, one
rotation table for all layers. Queries go through in groups of steps, each with just the keys up to its end, which saves
nearly half of the attention; a group of one step needs no mask at all.

Shapes: B clips, T steps, N tokens a step, L = T * N tokens, W width.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from flcache.predictor.rotary import Rotation, rotate

QUERY_TOKENS = 256
"""Queries per call of the attention kernel, in whole steps. Smaller calls skip more of the future but cost overhead:
on 2 cores, forward and backward of 16 steps of 64 tokens take 176 ms masked as a whole, 112 so, 123 step by step."""


class KeyValues:
    """What one layer keeps of the steps it has seen, so that a rollout computes each step once."""

    def __init__(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, heads, L, head_dim) of new steps; returns the keys and values of all steps so far."""
        if self._keys is not None and self._values is not None:
            keys = torch.cat((self._keys, keys), dim=2)
            values = torch.cat((self._values, values), dim=2)
        self._keys, self._values = keys, values
        return keys, values


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on (B, L, W)."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)

    def forward(self, tokens: Tensor, by: Rotation, step_tokens: int, seen: KeyValues | None = None) -> Tensor:
        """`tokens` (B, L, W) are whole steps of `step_tokens` each, which follow those in `seen` and join them."""
        tokens = tokens + self._attend(self.attention_norm(tokens), by, step_tokens, seen)
        # the tanh form is 5 times faster than erf on CPU, forward and backward
        hidden = gelu(self.mlp_in(self.mlp_norm(tokens)), approximate="tanh")
        output: Tensor = tokens + self.mlp_out(hidden)
        return output

    def _attend(self, tokens: Tensor, by: Rotation, step_tokens: int, seen: KeyValues | None) -> Tensor:
        queries, keys, values = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, L, heads, head_dim)
        queries, keys = rotate(queries, by).transpose(1, 2), rotate(keys, by).transpose(1, 2)
        values = values.transpose(1, 2)  # (B, heads, L, head_dim)
        if seen is not None:
            keys, values = seen.extend(keys, values)
        attended = block_causal_attention(queries, keys, values, step_tokens)
        output: Tensor = self.attention_out(attended.transpose(1, 2).flatten(2))
        return output


class BlockCausalTransformer(nn.Module):
    """`depth` blocks and a final norm, initialised from torch's generator."""

    def __init__(self, depth: int, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise(module)
        for block in self.blocks:
            shrink_residual_branches(block, depth)

    def forward(self, tokens: Tensor, by: Rotation, step_tokens: int, seen: list[KeyValues] | None = None) -> Tensor:
        """(B, L, W) to (B, L, W). With `seen`, one per block, the `tokens` follow the steps already in it."""
        for layer, block in enumerate(self.blocks):
            tokens = block(tokens, by, step_tokens, None if seen is None else seen[layer])
        normed: Tensor = self.norm(tokens)
        return normed


def block_causal_attention(queries: Tensor, keys: Tensor, values: Tensor, step_tokens: int) -> Tensor:
    """Attention of (B, heads, L, head_dim) queries, the last L of the keys, over the keys of their step and before."""
    earlier = keys.shape[2] - queries.shape[2]
    group = max(1, QUERY_TOKENS // step_tokens) * step_tokens
    attended = []
    for start in range(0, queries.shape[2], group):
        part = queries[:, :, start : start + group]
        end = earlier + start + part.shape[2]
        mask = None
        if part.shape[2] > step_tokens:
            mask = block_causal_mask(part.shape[2], end, step_tokens, part.dtype, part.device)
        attended.append(scaled_dot_product_attention(part, keys[:, :, :end], values[:, :, :end], attn_mask=mask))
    return attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)


@lru_cache(maxsize=64)
def block_causal_mask(queries: int, keys: int, step_tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(queries, keys) of 0 and -inf, to be added; the queries are the last of the keys. Shared: never write to it.

    Additive, because the CPU kernel would convert a boolean mask anew in every call.
    """
    with torch.inference_mode(False):  # or a mask first made there could never be used in training
        step_of_key = torch.arange(keys, device=device) // step_tokens
        future = step_of_key[keys - queries :, None] < step_of_key[None]
        return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(future, -math.inf)


def initialise(linear: nn.Linear) -> None:
    """Weights that keep the variance of their input, and no bias."""
    nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5)
    nn.init.zeros_(linear.bias)


def shrink_residual_branches(block: nn.Module, depth: int) -> None:
    """Scale the two branches of `block` so that the sum over all blocks starts with the variance of one (GPT-2)."""
    with torch.no_grad():
        for name in ("attention_out", "mlp_out"):
            block.get_submodule(name).get_parameter("weight").mul_((2 * depth) ** -0.5)
