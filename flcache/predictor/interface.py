"""What every predictor of future latents offers: predictions, and what it learns from in a batch.

Shapes: B clips, T steps, H x W patch grid, D channels, P predictions of a clip.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flcache.batch import ChannelStatistics, LatentBatch
from flcache.predictor.options import PredictorOptions
from flcache.predictor.transformer import Block

LatentShape = tuple[int, int, int, int]
"""(T, H, W, D)"""
END_COPIES = 7
"""Copies of the latents that every training step keeps: latents in and out, the change, the targets, the loss and its
gradients."""


@dataclass(frozen=True)
class Forecast:
    """Predictions of some steps of a batch."""

    prediction: Tensor
    """(B, P, H, W, D)"""
    steps: Tensor
    """(P,) numbers of the predicted steps."""
    horizons: Tensor
    """(P,) how many steps ahead: prediction p was made from the steps up to steps[p] - horizons[p]."""
    clip_weights: Tensor | None = None
    """(B,) factor of each clip's loss, for prediction and copy alike."""
    shown: Tensor | None = None
    """(B,) for a prediction made from its noisy target: the target's squared scale over the noise's."""

    @classmethod
    def from_boundary(
        cls, prediction: Tensor, boundary: int, clip_weights: Tensor | None = None, shown: Tensor | None = None
    ) -> Forecast:
        """`prediction` (B, P, H, W, D) of the steps from `boundary` on, made from the steps before it."""
        horizons = torch.arange(1, prediction.shape[1] + 1, device=prediction.device)
        return cls(prediction, horizons + boundary - 1, horizons, clip_weights, shown)


class Predictor(nn.Module, ABC):
    """Predicts latents, standardised per channel, at later times from those of a context."""

    kind: ClassVar[str]
    """Its name in configurations."""
    generative: ClassVar[bool] = False
    """Whether `predict` draws one of several futures from torch's generator."""
    takes_actions: ClassVar[bool] = False
    """Whether `predictor.actions` may be set. `predict` then gets `actions` too, (B, Tc + Tt, A) as the dataset has
    them: those of step t lead to step t + 1."""
    num_actions: int = 0
    """A, the numbers of a step's actions, if it is conditioned on them."""

    def __init__(self, options: PredictorOptions, latent_shape: LatentShape, num_actions: int = 0) -> None:
        """Parameters may depend on H, W and D of `latent_shape`, but not on T. `num_actions` is given only to a kind
        that `takes_actions`.

        Raises ConfigError if `options` do not fit the latents.
        """
        super().__init__()

    @abstractmethod
    def predict(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        """From `context` (B, Tc, H, W, D) at (B, Tc) seconds, the latents (B, Tt, H, W, D) at (B, Tt) later seconds.

        Tc and Tt are free. Gradients flow through all of it unless the caller disables them.
        """

    def sample(self, context: Tensor, context_times: Tensor, target_times: Tensor, seeds: Sequence[int]) -> Tensor:
        """`predict` of a generative predictor: a clip's seed decides its future, whatever else is in the batch."""
        futures = []
        for clip, seed in enumerate(seeds):
            one = slice(clip, clip + 1)
            with torch.random.fork_rng(devices=[context.device] if context.is_cuda else []):
                torch.manual_seed(seed)
                futures.append(self.predict(context[one], context_times[one], target_times[one]))
        return torch.cat(futures)

    def forecasts(self, batch: LatentBatch, boundaries: Sequence[int], rollout_steps: int) -> list[Forecast]:
        """The predictions that a training step on `batch` learns from: by default, all steps after a random boundary.

        `boundaries` are where contexts may end, shuffled for every batch and equal on all processes: take the first
        that serves. `rollout_steps` is how many steps in a row a step-by-step predictor rolls out. Noise comes from
        torch's generator, which is seeded for every batch.
        """
        boundary, times = boundaries[0], batch.times
        given: dict[str, Any] = {"actions": batch.arrays["actions"]} if self.num_actions else {}
        prediction = self.predict(batch.latents[:, :boundary], times[:, :boundary], times[:, boundary:], **given)
        return [Forecast.from_boundary(prediction, boundary)]

    def standardise_actions(self, statistics: ChannelStatistics) -> None:
        """Actions have these `statistics` (A,) in training."""

    def check_objective(self, distance: str, targets: str) -> None:
        """Raises ConfigError if it cannot learn from this `training.loss` with these `training.targets`."""

    def kept_numbers(self, latent_shape: LatentShape, rollout_steps: int) -> int:
        """How many numbers a training step keeps of each clip until the backward pass; by default no activations."""
        return END_COPIES * math.prod(latent_shape)

    def compile_blocks(self) -> None:
        """`torch.compile` for every transformer block; blocks of one kind share the compiled code."""
        for module in self.modules():
            if isinstance(module, Block):
                module.compile()
