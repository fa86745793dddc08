"""Attention kernels: over everything, and block-causal (a token of step t sees every token of the steps <= t).

On a CPU, block-causal queries go through `scaled_dot_product_attention` in groups of steps, each with just the keys up
to its end, which saves nearly half of the work; a group of one step needs no mask at all. On CUDA, FlexAttention skips
the future without a mask in memory. Steps of one token, as on the time axis, are plain causal attention everywhere.

Shapes: B clips, T steps, N tokens per step, L = T * N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

QUERY_TOKENS = 256
"""Queries per call of the attention kernel, in whole steps. Smaller calls skip more of the future but cost overhead:
on 2 cores, forward and backward of 16 steps of 64 tokens take 176 ms masked as a whole, 112 so, 123 step by step."""
FLEX_HEAD_DIM = 16
"""The narrowest head that FlexAttention compiles for."""


def block_causal_attention(queries: Tensor, keys: Tensor, values: Tensor, step_tokens: int) -> Tensor:
    """Attention of (B, heads, L, head_dim) queries, the last L of the keys, over the keys of their step and before."""
    if step_tokens == 1 and queries.shape[2] == keys.shape[2]:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True)
    if queries.shape[2] > step_tokens and _has_flex_attention(queries):
        skipping: Tensor = _flex_block_causal(queries, keys, values, step_tokens)
        return skipping
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


def flex_block_causal(
    flex_attention: Callable[..., Tensor], queries: Tensor, keys: Tensor, values: Tensor, step_tokens: int
) -> Tensor:
    """`block_causal_attention` by a (compiled) `torch.nn.attention.flex_attention.flex_attention`."""
    mask = _flex_mask(queries.shape[2], keys.shape[2], step_tokens, queries.device)
    return flex_attention(queries, keys, values, block_mask=mask)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _flex_block_causal(queries: Tensor, keys: Tensor, values: Tensor, step_tokens: int) -> Tensor:
    """Compiled by itself: inside a compiled block, torch 2.13 gives other numbers on a CPU, by 0.4 and more."""
    return flex_block_causal(_compiled_flex_attention(), queries, keys, values, step_tokens)


@lru_cache(maxsize=64)
def _flex_mask(queries: int, keys: int, step_tokens: int, device: torch.device) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    earlier = keys - queries

    def sees(clip: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query + earlier) // step_tokens >= key // step_tokens

    return create_block_mask(sees, None, None, queries, keys, device=str(device))


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """Only compiled does it skip the future; as it stands it would fill the whole matrix."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


def _has_flex_attention(queries: Tensor) -> bool:
    return queries.is_cuda and queries.shape[3] >= FLEX_HEAD_DIM and find_spec("triton") is not None
