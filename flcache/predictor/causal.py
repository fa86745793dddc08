"""The causal predictor: next step from all steps so far, and rollouts of it.

Starts as "copy the last step", exactly: the head is zero and its output is added to the latents of the current step.

Shapes: B clips, T steps, H x W patch grid, D channels of latents; h x w token grid after merging; N = h * w.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flcache.predictor.interface import Predictor
from flcache.predictor.rotary import rotation
from flcache.predictor.tokens import ScalarEmbedding, embedding, merge_patches, split_patches, zero_head
from flcache.predictor.transformer import KeyValues, Transformer, TransformerSize

Past = Sequence[KeyValues]
"""What every layer keeps of the steps that were seen."""


class CausalPredictor(Predictor):
    """Predicts each next step of standardised latents from that step's past.

    `merge` x `merge` patches share one token: the cost falls with its square, the prediction keeps its resolution.
    """

    def __init__(self, size: TransformerSize, *, channels: int, merge: int) -> None:
        super().__init__()
        self.head_dim = size.width // size.heads
        self.merge = merge
        self.embed = embedding(channels, size.width, merge)
        self.ahead = ScalarEmbedding(size.width)
        self.transformer = Transformer(size, causal=True)
        self.head = zero_head(channels, size.width, merge)

    def forward(self, latents: Tensor, times: Tensor, next_times: Tensor) -> Tensor:
        """Teacher forcing: from `latents` (B, T, H, W, D) at `times` (B, T) seconds, those at `next_times` (B, T).

        Prediction t, of the same shape, depends on the steps <= t alone, whatever follows them.
        """
        origin = times[:, :1]
        return self._predict_next(latents, times - origin, next_times - origin)[0]

    def predict(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        """Roll out, step by step: every prediction is the input of the next."""
        steps = context.shape[1]
        times = torch.cat((context_times, target_times), dim=1) - context_times[:, :1]  # (B, Tc + Tt)
        forced, past = self._predict_next(context, times[:, :steps], times[:, 1 : steps + 1])
        return self._roll_out(forced[:, -1:], times[:, steps:], past)

    def force_and_roll_out(self, latents: Tensor, times: Tensor, split: int, steps: int) -> tuple[Tensor, Tensor]:
        """`forward` on all but the last of `latents` (B, T, H, W, D), and `steps` rolled out from those < `split`.

        Returns (B, T - 1, H, W, D) and (B, steps, H, W, D). They share the work on the prefix, and the first step of
        the rollout is one of the forced ones; each later one is made from the prefix and the predictions before it.
        """
        times = times - times[:, :1]
        forced, past = self._predict_next(latents[:, :-1], times[:, :-1], times[:, 1:])
        step_tokens = latents.shape[2] * latents.shape[3] // self.merge**2
        prefix = self.transformer.first_steps(past, split, step_tokens)
        return forced, self._roll_out(forced[:, split - 1 : split], times[:, split : split + steps], prefix)

    def _roll_out(self, first: Tensor, times: Tensor, past: Past) -> Tensor:
        """The steps at `times` (B, Tt), of which the `first` (B, 1, H, W, D) was predicted when `past` was kept."""
        predicted = [first]
        for now in range(times.shape[1] - 1):
            step, past = self._predict_next(predicted[-1], times[:, now : now + 1], times[:, now + 1 : now + 2], past)
            predicted.append(step)
        return torch.cat(predicted, dim=1)

    def _predict_next(
        self, latents: Tensor, times: Tensor, next_times: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """`forward` for times that already share an origin, for steps after those of `past`; and past with them."""
        patches = merge_patches(latents, self.merge)  # (B, T, h, w, merge * merge * D)
        height, width = patches.shape[2:4]
        tokens = self.embed(patches.flatten(2, 3)) + self.ahead(next_times - times)[:, :, None]  # (B, T, N, width)
        by = rotation(times, height, width, self.head_dim)
        hidden, past = self.transformer(tokens.flatten(1, 2), by, height * width, past)
        change: Tensor = self.head(hidden).unflatten(1, patches.shape[1:4])
        return latents + split_patches(change, self.merge), past
