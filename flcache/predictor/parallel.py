"""The parallel predictor: all target steps at once, from mask tokens beside the tokens of the context.

Shapes: B clips, Tc and Tt steps of context and target, H x W patch grid, D channels; N tokens per step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flcache.predictor.interface import LatentShape
from flcache.predictor.options import PredictorOptions
from flcache.predictor.rotary import rotation
from flcache.predictor.tokens import ScalarEmbedding, merge_patches, unmerge_patches, zero_head
from flcache.predictor.transformer import Transformer
from flcache.predictor.transformer_predictor import TransformerPredictor


class ParallelPredictor(TransformerPredictor):
    """Context and mask tokens all attend to each other; the prediction is read from the mask tokens."""

    kind = "parallel"

    def __init__(self, options: PredictorOptions, latent_shape: LatentShape) -> None:
        super().__init__(options, latent_shape)
        self.mask = nn.Parameter(0.02 * torch.randn(self.size.width))
        self.ahead = ScalarEmbedding(self.size.width)
        self.transformer = Transformer(self.size, causal=False)
        self.head = zero_head(self.channels, self.size.width, self.merge)

    def predict(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        patches = merge_patches(context, self.merge)  # (B, Tc, h, w, merge * merge * D)
        height, width = patches.shape[2:4]
        seen = self.embed(patches.flatten(2, 3))  # (B, Tc, N, width)
        masked = self.mask + self.ahead(target_times - context_times[:, -1:])  # (B, Tt, width)
        tokens = torch.cat((seen, masked[:, :, None].expand(-1, -1, height * width, -1)), dim=1)
        times = torch.cat((context_times, target_times), dim=1) - context_times[:, :1]
        by = rotation(times, height, width, self.head_dim)
        hidden, _ = self.transformer(tokens.flatten(1, 2), by, height * width)
        targets = hidden[:, -target_times.shape[1] * height * width :]
        change = self.head(targets).unflatten(1, (target_times.shape[1], height, width))
        return context[:, -1:] + unmerge_patches(change, self.merge)
