"""The cross-attention predictor: targets query a context that is encoded once.

A target step never sees another one, so its prediction does not depend on which others are asked for.

Shapes: B clips, Tc and Tt steps of context and target, H x W patch grid, D channels; N tokens per step.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from flcache.predictor.interface import LatentShape
from flcache.predictor.options import PredictorOptions
from flcache.predictor.rotary import rotation
from flcache.predictor.tokens import ScalarEmbedding, merge_patches, unmerge_patches, zero_head
from flcache.predictor.transformer import CrossTransformer, Transformer
from flcache.predictor.transformer_predictor import TransformerPredictor


class CrossAttentionPredictor(TransformerPredictor):
    """Half of the layers encode the context, the other half let the targets query it."""

    kind = "cross_attention"

    def __init__(self, options: PredictorOptions, latent_shape: LatentShape) -> None:
        super().__init__(options, latent_shape)
        size = self.size
        self.query = nn.Parameter(0.02 * torch.randn(size.width))
        self.ahead = ScalarEmbedding(size.width)
        self.context = Transformer(replace(size, depth=size.depth // 2), causal=False)
        self.targets = CrossTransformer(replace(size, depth=size.depth - size.depth // 2))
        self.head = zero_head(self.channels, size.width, self.merge)

    def predict(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        patches = merge_patches(context, self.merge)  # (B, Tc, h, w, merge * merge * D)
        height, width = patches.shape[2:4]
        origin = context_times[:, :1]
        context_by = rotation(context_times - origin, height, width, self.head_dim)
        seen, _ = self.context(self.embed(patches.flatten(1, 3)), context_by, height * width)
        queries = self.query + self.ahead(target_times - context_times[:, -1:])  # (B, Tt, width)
        queries = queries[:, :, None].expand(-1, -1, height * width, -1).flatten(1, 2)
        target_by = rotation(target_times - origin, height, width, self.head_dim)
        hidden = self.targets(queries, target_by, seen, context_by, height * width)
        change = self.head(hidden).unflatten(1, (target_times.shape[1], height, width))
        return context[:, -1:] + unmerge_patches(change, self.merge)

    def kept_numbers(self, latent_shape: LatentShape, rollout_steps: int) -> int:
        """Every token passes one half of the layers: context tokens the first, target tokens the second."""
        return self.kept_by_tokens(latent_shape, self.size.depth / 2)
