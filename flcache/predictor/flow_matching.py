"""Flow matching: samples of the future, by a conditional flow from noise to standardised latents.

On the straight path `x_t = (1 - t) * noise + t * target` the network estimates the path's end, and the velocity follows
as `(end - x_t) / (1 - t)`. The loss is the squared error of the velocity: estimates of the end with a loss on the
velocity work best in wide latents (arXiv 2511.13720). Source: flow matching, arXiv 2210.02747.

Shapes: B clips, Tc and Tt steps of context and target, H x W patch grid, D channels; N tokens per step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flcache.batch import LatentBatch
from flcache.errors import ConfigError
from flcache.predictor.interface import Forecast, LatentShape
from flcache.predictor.options import PredictorOptions
from flcache.predictor.rotary import rotation
from flcache.predictor.tokens import ScalarEmbedding, embedding, merge_patches, unmerge_patches, zero_head
from flcache.predictor.transformer import Transformer
from flcache.predictor.transformer_predictor import TransformerPredictor

SMALLEST_REMAINDER = 0.05
"""Lower limit of 1 - t in the weight (1 - t)^-2 of an end's error."""
PROGRESS_MEAN, PROGRESS_STD = -0.8, 0.8
"""Training draws the logit of t from this normal distribution: mostly small t, where most of the future is decided."""


class FlowMatchingPredictor(TransformerPredictor):
    """`predict` draws one sample of the future per clip, from torch's generator."""

    kind = "flow_matching"
    generative = True

    def __init__(self, options: PredictorOptions, latent_shape: LatentShape) -> None:
        super().__init__(options, latent_shape)
        size = self.size
        self.flow = options.flow
        self.embed_noisy = embedding(self.channels, size.width, self.merge)
        self.hidden_past = nn.Parameter(0.02 * torch.randn(size.width))
        self.ahead = ScalarEmbedding(size.width)
        self.progress = ScalarEmbedding(size.width)
        self.transformer = Transformer(size, causal=False)
        self.head = zero_head(self.channels, size.width, self.merge)

    def forward(
        self, noisy: Tensor, progress: Tensor, context: Tensor, times: Tensor, hide_past: Tensor | None = None
    ) -> Tensor:
        """Estimated ends (B, Tt, H, W, D) of the paths that are at `noisy` (B, Tt, H, W, D), t = `progress` (B,).

        `times` (B, Tc + Tt) are of context and targets. Clips with `hide_past` (B,) True show the context's last step
        alone.
        """
        steps = context.shape[1]
        seen, (height, width) = self._embed(context, self.embed)  # (B, Tc, N, width)
        if hide_past is not None:
            hidden = hide_past[:, None] & (torch.arange(steps, device=seen.device) < steps - 1)  # (B, Tc)
            seen = torch.where(hidden[:, :, None, None], self.hidden_past.to(seen.dtype), seen)
        asked = self.ahead(times[:, steps:] - times[:, steps - 1 : steps]) + self.progress(progress)[:, None]
        wanted = self._embed(noisy, self.embed_noisy)[0] + asked[:, :, None]
        tokens = torch.cat((seen, wanted), dim=1).flatten(1, 2)
        by = rotation(times - times[:, :1], height, width, self.head_dim)
        tokens, _ = self.transformer(tokens, by, height * width)
        change = self.head(tokens[:, steps * height * width :]).unflatten(1, (noisy.shape[1], height, width))
        return context[:, -1:] + unmerge_patches(change, self.merge)

    def predict(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        shape = (len(context), target_times.shape[1], *context.shape[2:])
        noise = torch.randn(shape, dtype=context.dtype, device=context.device)
        return self._flow(noise, context, torch.cat((context_times, target_times), dim=1))

    def sample(self, context: Tensor, context_times: Tensor, target_times: Tensor, seeds: Sequence[int]) -> Tensor:
        """All clips in one call. The noise is drawn on the CPU, so that every device starts from the same."""
        shape = (target_times.shape[1], *context.shape[2:])
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        times = torch.cat((context_times, target_times), dim=1)
        return self._flow(torch.stack(noise).to(context), context, times)

    def _flow(self, state: Tensor, context: Tensor, times: Tensor) -> Tensor:
        """Follow the paths from the noise `state` (B, Tt, H, W, D) to their ends, the latents."""
        steps = self.flow.sampler_steps
        for now in range(steps - 1):
            state = self._step(state, now / steps, 1 / steps, context, times)
        return self._guided_end(state, 1 - 1 / steps, context, times)  # the last Euler step arrives there

    def forecasts(self, batch: LatentBatch, boundaries: Sequence[int], rollout_steps: int) -> list[Forecast]:
        """The ends of paths to all steps after a random boundary.

        The squared error of an end times its weight is the squared error of the velocity.
        """
        boundary = boundaries[0]
        latents, times, targets = batch.latents, batch.times, batch.targets[:, boundary:].detach()
        ends, progress = self.noisy_ends(latents[:, :boundary], times[:, :boundary], targets, times[:, boundary:])
        weights = (1 - progress).clamp(min=SMALLEST_REMAINDER) ** -2
        return [Forecast.from_boundary(ends, boundary, weights, (progress / (1 - progress)).square())]

    def check_objective(self, distance: str, targets: str) -> None:
        if (distance, targets) != ("l2", "raw"):
            raise ConfigError(
                f'predictor.kind: flow_matching learns velocities, whose mean only "l2" on "raw" targets finds; '
                f'training.loss is "{distance}" and training.targets "{targets}": set training.loss=l2 and '
                "training.targets=raw"
            )

    def noisy_ends(
        self, context: Tensor, context_times: Tensor, targets: Tensor, target_times: Tensor
    ) -> tuple[Tensor, Tensor]:
        """For training: ends (B, Tt, H, W, D) of the paths to `targets`, estimated at random t (B,); and these t."""
        clips = len(targets)
        logits = PROGRESS_MEAN + PROGRESS_STD * torch.randn(clips, device=targets.device)
        progress = logits.sigmoid()
        done = progress[:, None, None, None, None]
        noisy = (1 - done) * torch.randn_like(targets) + done * targets
        hide_past = torch.rand(clips, device=targets.device) < self.flow.context_dropout
        times = torch.cat((context_times, target_times), dim=1)
        ends: Tensor = self(noisy, progress, context, times, hide_past)
        return ends, progress

    def _step(self, state: Tensor, done: float, step: float, context: Tensor, times: Tensor) -> Tensor:
        """Move `state` from t = `done` of its path to t = `done + step`."""
        velocity = (self._guided_end(state, done, context, times) - state) / (1 - done)
        arrived = state + step * velocity
        if self.flow.sampler == "euler":
            return arrived
        later = (self._guided_end(arrived, done + step, context, times) - arrived) / (1 - done - step)
        return state + step * (velocity + later) / 2

    def _guided_end(self, state: Tensor, done: float, context: Tensor, times: Tensor) -> Tensor:
        progress = torch.full((len(state),), done, device=state.device)
        end: Tensor = self(state, progress, context, times)
        if self.flow.guidance == 1:
            return end
        everyone = torch.ones(len(state), dtype=torch.bool, device=state.device)
        plain: Tensor = self(state, progress, context, times, everyone)
        return plain + self.flow.guidance * (end - plain)

    def _embed(self, latents: Tensor, by: nn.Linear) -> tuple[Tensor, tuple[int, int]]:
        """(B, T, H, W, D) to tokens (B, T, N, width), and the height and width of their grid."""
        patches = merge_patches(latents, self.merge)
        return by(patches.flatten(2, 3)), (patches.shape[2], patches.shape[3])
