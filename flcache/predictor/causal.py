"""The causal predictor: next step from all steps so far, and rollouts of it.

The head is zero at first and its output is added to the current step: an untrained predictor copies it exactly.

With actions, that of step t is embedded and added to each token of the step: it says how step t becomes step t + 1.

Shapes: B clips, T steps, H x W patch grid, D channels of latents, A numbers of an action; h x w token grid after
merging; N = h * w.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flcache.batch import ChannelStatistics, LatentBatch
from flcache.predictor.attention import QUERY_TOKENS
from flcache.predictor.interface import Forecast, LatentShape
from flcache.predictor.options import PredictorOptions
from flcache.predictor.rotary import rotation
from flcache.predictor.tokens import ActionEmbedding, ScalarEmbedding, merge_patches, unmerge_patches, zero_head
from flcache.predictor.transformer import KeyValues, Transformer
from flcache.predictor.transformer_predictor import BLOCK_WIDTHS, TransformerPredictor

Past = Sequence[KeyValues]
"""Keys and values of the steps seen so far, one pair per layer."""


class CausalPredictor(TransformerPredictor):
    """Predicts each next step of standardised latents from that step's past."""

    kind = "causal"
    takes_actions = True

    def __init__(self, options: PredictorOptions, latent_shape: LatentShape, num_actions: int = 0) -> None:
        super().__init__(options, latent_shape)
        self.ahead = ScalarEmbedding(self.size.width)
        self.transformer = Transformer(self.size, causal=True)
        self.head = zero_head(self.channels, self.size.width, self.merge)
        self.num_actions = num_actions
        self.acts = ActionEmbedding(num_actions, self.size.width) if num_actions else None

    def standardise_actions(self, statistics: ChannelStatistics) -> None:
        assert self.acts is not None
        self.acts.mean.copy_(statistics.mean)
        self.acts.std.copy_(statistics.std)

    def forward(self, latents: Tensor, times: Tensor, next_times: Tensor, actions: Tensor | None = None) -> Tensor:
        """Teacher forcing: from `latents` (B, T, H, W, D) at `times` (B, T) seconds, and `actions` (B, T, A), those at
        `next_times` (B, T).

        Prediction t depends on the steps <= t alone.
        """
        origin = times[:, :1]
        return self._predict_next(latents, times - origin, next_times - origin, actions=actions)[0]

    def predict(
        self, context: Tensor, context_times: Tensor, target_times: Tensor, actions: Tensor | None = None
    ) -> Tensor:
        """Roll out, step by step: every prediction is the input of the next. The last of the `actions` leads beyond."""
        steps = context.shape[1]
        times = torch.cat((context_times, target_times), dim=1) - context_times[:, :1]  # (B, Tc + Tt)
        seen = _steps(actions, 0, steps)
        forced, past = self._predict_next(context, times[:, :steps], times[:, 1 : steps + 1], actions=seen)
        return self._roll_out(forced[:, -1:], times[:, steps:], past, _steps(actions, steps, None))

    def forecasts(self, batch: LatentBatch, boundaries: Sequence[int], rollout_steps: int) -> list[Forecast]:
        """Every next step from the true ones before it; and a rollout after a random boundary, without its first step,
        which is one of these."""
        latents, times, steps = batch.latents, batch.times, batch.latents.shape[1]
        actions = None if self.acts is None else batch.arrays["actions"]
        if rollout_steps == 1:
            return [_next_steps(self(latents[:, :-1], times[:, :-1], times[:, 1:], _steps(actions, 0, -1)))]
        roomy = [boundary for boundary in boundaries if boundary + rollout_steps <= steps]
        boundary = (roomy or boundaries)[0]
        ahead = min(rollout_steps, steps - boundary)
        forced, rolled = self.force_and_roll_out(latents, times, boundary, ahead, actions)
        whole = Forecast.from_boundary(rolled, boundary)
        return [_next_steps(forced), Forecast(rolled[:, 1:], whole.steps[1:], whole.horizons[1:])]

    def kept_numbers(self, latent_shape: LatentShape, rollout_steps: int) -> int:
        """The last step of a clip is a target only. Attention in several groups of queries concatenates a copy."""
        steps, height, width, channels = latent_shape
        step_tokens = height * width // self.merge**2
        grouped = self.size.attention == "joint" and step_tokens * (steps - 1) > QUERY_TOKENS
        forced = self.kept_by_tokens((steps - 1, height, width, channels), self.size.depth, BLOCK_WIDTHS + grouped)
        return forced + step_tokens * self._kept_by_rollout(steps, rollout_steps)

    def force_and_roll_out(
        self, latents: Tensor, times: Tensor, boundary: int, steps: int, actions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward` on all but the last of `latents` (B, T, H, W, D), and `steps` rolled out from those < `boundary`.

        Returns (B, T - 1, H, W, D) and (B, steps, H, W, D). The steps < `boundary` are computed once for both.
        """
        times = times - times[:, :1]
        before = _steps(actions, 0, -1)
        forced, past = self._predict_next(latents[:, :-1], times[:, :-1], times[:, 1:], actions=before)
        step_tokens = latents.shape[2] * latents.shape[3] // self.merge**2
        prefix = self.transformer.first_steps(past, boundary, step_tokens)
        first, later = forced[:, boundary - 1 : boundary], times[:, boundary : boundary + steps]
        return forced, self._roll_out(first, later, prefix, _steps(actions, boundary, None))

    def _roll_out(self, first: Tensor, times: Tensor, past: Past, actions: Tensor | None) -> Tensor:
        """The steps at `times` (B, Tt): `first` (B, 1, H, W, D), then each from the one before it, its action and
        `past`."""
        predicted = [first]
        for now in range(times.shape[1] - 1):
            here, there = times[:, now : now + 1], times[:, now + 1 : now + 2]
            step, past = self._predict_next(predicted[-1], here, there, past, _steps(actions, now, now + 1))
            predicted.append(step)
        return torch.cat(predicted, dim=1)

    def _predict_next(
        self,
        latents: Tensor,
        times: Tensor,
        next_times: Tensor,
        past: Past | None = None,
        actions: Tensor | None = None,
    ) -> tuple[Tensor, Past]:
        """`forward` for steps that follow those of `past`, times relative to the clip's first; and the longer past."""
        patches = merge_patches(latents, self.merge)  # (B, T, h, w, merge * merge * D)
        height, width = patches.shape[2:4]
        tokens = self.embed(patches.flatten(2, 3)) + self.ahead(next_times - times)[:, :, None]  # (B, T, N, width)
        if self.acts is not None:
            assert actions is not None, "this predictor is conditioned on actions"
            tokens = tokens + self.acts(actions)[:, :, None]
        by = rotation(times, height, width, self.head_dim)
        hidden, past = self.transformer(tokens.flatten(1, 2), by, height * width, past)
        change: Tensor = self.head(hidden).unflatten(1, patches.shape[1:4])
        return latents + unmerge_patches(change, self.merge), past

    def _kept_by_rollout(self, steps: int, rollout_steps: int) -> int:
        """Numbers kept of each token of the grid by a rollout that ends where the clip does."""
        size, rolled = self.size, max(0, min(rollout_steps, steps - 1) - 1)
        block = size.width if size.checkpoint_activations else BLOCK_WIDTHS * size.width + 2 * size.mlp_width
        pasts = sum(2 * size.width * (steps - rolled + step) for step in range(rolled))  # keys and values are copied
        return size.depth * (rolled * block + pasts)


def _steps(actions: Tensor | None, start: int, stop: int | None) -> Tensor | None:
    return None if actions is None else actions[:, start:stop]


def _next_steps(forced: Tensor) -> Forecast:
    """Predictions (B, T - 1, H, W, D) of the steps 1 to T - 1, each one step ahead."""
    steps = torch.arange(1, forced.shape[1] + 1, device=forced.device)
    return Forecast(forced, steps, torch.ones_like(steps))
