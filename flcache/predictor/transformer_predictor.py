"""What the predictors that are transformers on merged patches share: size, embedding, and the memory they take."""

from __future__ import annotations

from flcache.predictor.interface import END_COPIES, LatentShape, Predictor
from flcache.predictor.options import PredictorOptions
from flcache.predictor.tokens import check_grid, embedding
from flcache.predictor.transformer import TransformerSize

BLOCK_WIDTHS = 10
"""What autograd keeps of a token in a block, in widths: its input, the norm of it, queries, keys and values in one
piece, rotated queries and keys, the attention's output, its sum with the input, and the norm of that."""


class TransformerPredictor(Predictor):
    """`merge` x `merge` patches share one token: the cost falls with its square, the prediction keeps its resolution.

    Its head is zero at first and is added to the last step of the context: untrained, it copies that step exactly.
    Parameters depend on D alone: H and W may differ later too, as long as `merge` divides them.
    """

    def __init__(self, options: PredictorOptions, latent_shape: LatentShape) -> None:
        super().__init__(options, latent_shape)
        shape = options.shape()
        _, height, width, self.channels = latent_shape
        check_grid(height, width, shape.merge)
        self.size = TransformerSize(
            depth=shape.depth,
            width=shape.width,
            heads=shape.heads,
            mlp_width=shape.mlp_width,
            attention=options.attention,
            checkpoint_activations=options.checkpoint_activations,
        )
        self.head_dim = shape.width // shape.heads
        self.merge = shape.merge
        self.embed = embedding(self.channels, shape.width, shape.merge)

    def kept_numbers(self, latent_shape: LatentShape, rollout_steps: int) -> int:
        return self.kept_by_tokens(latent_shape, self.size.depth)

    def kept_by_tokens(self, latent_shape: LatentShape, depth: float, block_widths: int = BLOCK_WIDTHS) -> int:
        """`kept_numbers` if every token of a clip passes `depth` blocks, each of which keeps `block_widths` of it."""
        steps, height, width, channels = latent_shape
        block = block_widths * self.size.width + 2 * self.size.mlp_width
        kept = depth * block
        if self.size.checkpoint_activations:
            kept = depth * self.size.width + 2 * block  # one recomputed block and its gradients
        tokens = steps * (height * width // self.merge**2)
        return tokens * (round(kept) + END_COPIES * channels * self.merge**2)
