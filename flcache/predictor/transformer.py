"""Transformer blocks on space-time tokens: pre-norm attention and MLP.

Attention is `joint` (over all tokens of the clip, causal or not) or `factorised` (layers alternate between the steps of
one place and the tokens of one step: the cost of a long clip then grows with T * N * (T + N) instead of the square of
T * N).

Shapes: B clips, T steps, N tokens per step, L = T * N tokens, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from flcache.predictor.attention import block_causal_attention
from flcache.predictor.options import Attention
from flcache.predictor.rotary import Rotation, rotate

Axis = Literal["all", "time", "space"]
"""Which tokens attend to each other in a layer: all, those of one place, or those of one step."""
KeyValues = tuple[Tensor, Tensor]
"""One layer's key-value cache, each (B', heads, L', head_dim). Layers of the axis "space" keep nothing: L' = 0."""


@dataclass(frozen=True)
class TransformerSize:
    """The size of a stack of blocks, and how it computes; fields as in `PredictorOptions` and `PredictorShape`."""

    depth: int
    width: int
    heads: int
    mlp_width: int
    attention: Attention = "joint"
    checkpoint_activations: bool = False


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on (B, L, W)."""

    def __init__(self, size: TransformerSize, axis: Axis, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.axis, self.causal = size.heads, axis, causal
        self.attention_norm = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.attention_out = nn.Linear(size.width, size.width)
        self.mlp_norm = nn.LayerNorm(size.width)
        self.mlp_in = nn.Linear(size.width, size.mlp_width)
        self.mlp_out = nn.Linear(size.mlp_width, size.width)

    def forward(
        self, tokens: Tensor, by: Rotation, step_tokens: int, past: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues]:
        """`tokens` are whole steps of `step_tokens` each, which follow those of `past`; returned with a longer past.

        Only causal blocks take a past: in others, earlier steps attend to later ones and would change with them.
        """
        queries, keys, values = self._project(self.attention_norm(tokens), by, step_tokens)
        if self.axis == "space":
            attended = scaled_dot_product_attention(queries, keys, values)
            return self._finish(tokens, attended), (keys[:, :, :0], values[:, :, :0])
        if past is not None:
            keys, values = torch.cat((past[0], keys), dim=2), torch.cat((past[1], values), dim=2)
        if self.causal:
            attended = block_causal_attention(queries, keys, values, 1 if self.axis == "time" else step_tokens)
        else:
            attended = scaled_dot_product_attention(queries, keys, values)
        return self._finish(tokens, attended), (keys, values)

    def _project(self, tokens: Tensor, by: Rotation, step_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each (B', heads, L', head_dim) with B' groups that attend alone."""
        queries, keys, values = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, L, heads, head_dim)
        queries, keys = rotate(queries, by), rotate(keys, by)
        return tuple(_gather(heads, self.axis, step_tokens) for heads in (queries, keys, values))  # type: ignore[return-value]

    def _finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """`tokens` (B, L, W) plus what they attended to (B', heads, L', head_dim), and the MLP of both."""
        tokens = tokens + self.attention_out(_scatter(attended, self.axis, tokens.shape[0]))
        # the tanh form is 5 times faster than erf on CPU, forward and backward
        hidden = gelu(self.mlp_in(self.mlp_norm(tokens)), approximate="tanh")
        output: Tensor = tokens + self.mlp_out(hidden)
        return output


class CrossBlock(Block):
    """A block in which target tokens attend to the context; in a layer of the axis "space", to their own step instead.

    They never attend to another target step.
    """

    def forward(  # type: ignore[override]
        self, tokens: Tensor, by: Rotation, context: Tensor, context_by: Rotation, step_tokens: int
    ) -> Tensor:
        """Target `tokens` (B, L, W) and normed `context` (B, M, W), both in whole steps of `step_tokens`."""
        queries, keys, values = self._project(self.attention_norm(tokens), by, step_tokens)
        if self.axis != "space":
            _, keys, values = self._project(context, context_by, step_tokens)
        return self._finish(tokens, scaled_dot_product_attention(queries, keys, values))


class Transformer(nn.Module):
    """Blocks of self-attention and a final norm, initialised from torch's generator."""

    def __init__(self, size: TransformerSize, *, causal: bool) -> None:
        super().__init__()
        self.checkpoint_activations = size.checkpoint_activations
        self.blocks = nn.ModuleList(Block(size, axis, causal=causal) for axis in layer_axes(size))
        self.norm = nn.LayerNorm(size.width)
        initialise_blocks(self.blocks)

    def forward(
        self, tokens: Tensor, by: Rotation, step_tokens: int, past: Sequence[KeyValues] | None = None
    ) -> tuple[Tensor, list[KeyValues]]:
        """(B, L, W) to (B, L, W), and `past`, one per block, of the steps before `tokens` extended by theirs."""
        longer: list[KeyValues] = []
        for layer, block in enumerate(self.blocks):
            before = None if past is None else past[layer]
            tokens, after = run_block(block, self.checkpoint_activations, tokens, by, step_tokens, before)
            longer.append(after)
        return self.norm(tokens), longer

    def first_steps(self, past: Sequence[KeyValues], steps: int, step_tokens: int) -> list[KeyValues]:
        """The first `steps` steps of `past`."""
        kept = []
        for block, (keys, values) in zip(self.blocks, past, strict=True):
            assert isinstance(block, Block)
            tokens = steps if block.axis == "time" else steps * step_tokens
            kept.append((keys[:, :, :tokens], values[:, :, :tokens]))
        return kept


class CrossTransformer(nn.Module):
    """`CrossBlock`s and a final norm."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.checkpoint_activations = size.checkpoint_activations
        self.blocks = nn.ModuleList(CrossBlock(size, axis) for axis in layer_axes(size))
        self.norm = nn.LayerNorm(size.width)
        initialise_blocks(self.blocks)

    def forward(self, tokens: Tensor, by: Rotation, context: Tensor, context_by: Rotation, step_tokens: int) -> Tensor:
        """(B, L, W) to (B, L, W); as in `CrossBlock`."""
        for block in self.blocks:
            tokens = run_block(block, self.checkpoint_activations, tokens, by, context, context_by, step_tokens)
        normed: Tensor = self.norm(tokens)
        return normed


def layer_axes(size: TransformerSize) -> list[Axis]:
    """The axis of each layer; factorised attention begins with time."""
    if size.attention == "joint":
        return ["all"] * size.depth
    return ["space" if layer % 2 else "time" for layer in range(size.depth)]


def run_block(block: nn.Module, checkpointed: bool, *inputs: Any) -> Any:
    """`block(*inputs)`; if `checkpointed`, the backward pass recomputes its inner activations."""
    if checkpointed and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def initialise(linear: nn.Linear) -> None:
    """Weights that keep the variance of their input, and a bias of zero."""
    nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5)
    nn.init.zeros_(linear.bias)


def initialise_blocks(blocks: nn.ModuleList) -> None:
    """`initialise`, with residual branches scaled so that their sum has the variance of one at first (GPT-2)."""
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            initialise(module)
    with torch.no_grad():
        for block in blocks:
            for branch in ("attention_out", "mlp_out"):
                block.get_submodule(branch).get_parameter("weight").mul_((2 * len(blocks)) ** -0.5)


def _gather(heads: Tensor, axis: Axis, step_tokens: int) -> Tensor:
    """(B, L, heads, head_dim) to (B', heads, L', head_dim): B' is B, B * N for the time axis, B * T for space."""
    B, L, *head = heads.shape
    if axis == "space":
        heads = heads.reshape(B * L // step_tokens, step_tokens, *head)
    elif axis == "time":
        heads = heads.reshape(B, L // step_tokens, step_tokens, *head).transpose(1, 2).flatten(0, 1)
    return heads.transpose(1, 2)


def _scatter(attended: Tensor, axis: Axis, clips: int) -> Tensor:
    """The inverse of `_gather`, with the heads side by side: (B, L, W)."""
    tokens = attended.transpose(1, 2).flatten(2)  # (B', L', W)
    if axis == "time":
        tokens = tokens.reshape(clips, -1, *tokens.shape[1:]).transpose(1, 2)
    return tokens.reshape(clips, -1, tokens.shape[-1])
