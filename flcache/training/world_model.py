"""What is trained: a predictor, and with it the encoder where the configuration unfreezes it.

Latents from a cache go straight to the predictor; frames are encoded first. When the encoder trains, the targets come
from an exponential moving average of it, without gradient: this keeps encoder and predictor from collapsing to a
constant.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flcache.batch import ChannelStatistics, LatentBatch, VideoBatch
from flcache.encoder import LatentVideoModel
from flcache.predictor import Predictor
from flcache.training.objective import PredictionLoss, prediction_loss
from flcache.training.options import Objective

Batch = LatentBatch | VideoBatch


class WorldModel(nn.Module):
    """Predictor, channel statistics and, when it trains, the encoder with its moving average.

    With `averaged`, a moving average of the predictor's weights is kept in `average`; `evaluated` is that, or the
    predictor itself. `boundaries` are where a context may end (`legal_training_boundaries`). `forward` takes a
    `LatentBatch` of standardised latents or a `VideoBatch` of frames, and the boundaries in order of preference, and
    returns the loss. A frozen encoder is kept outside the module tree, so that neither checkpoints nor data-parallel
    wrappers include it.
    Raises ConfigError if the predictor cannot learn from the objective.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        predictor: Predictor,
        statistics: ChannelStatistics,
        *,
        boundaries: Sequence[int],
        objective: Objective,
        encoder: LatentVideoModel | None = None,
        averaged: bool = False,
    ) -> None:
        super().__init__()
        predictor.check_objective(objective.distance, objective.targets)
        self.predictor = predictor
        self.average: Predictor | None = copy.deepcopy(predictor).requires_grad_(False) if averaged else None
        self.boundaries = list(boundaries)
        self.objective = objective
        self.register_buffer("mean", statistics.mean.clone())
        self.register_buffer("std", statistics.std.clone())
        self.encoder: LatentVideoModel | None = None
        self.target_encoder: LatentVideoModel | None = None
        self._frozen: tuple[LatentVideoModel, ...] = ()
        if encoder is not None and encoder.trainable:
            self.encoder, self.target_encoder = encoder, copy.deepcopy(encoder)
            self.target_encoder.requires_grad_(False)
        elif encoder is not None:
            self._frozen = (encoder,)

    @property
    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(self.mean, self.std)

    @property
    def evaluated(self) -> Predictor:
        return self.predictor if self.average is None else self.average

    def forward(self, batch: Batch, boundaries: Sequence[int] | None = None) -> PredictionLoss:
        latents = self.to_latents(batch)
        rollout_steps = self.objective.steps_rolled_out(self.boundaries, latents.latents.shape[1])
        forecasts = self.predictor.forecasts(latents, boundaries or self.boundaries, rollout_steps)
        return prediction_loss(forecasts, latents, self.boundaries, self.objective)

    def to_latents(self, batch: Batch) -> LatentBatch:
        """`batch`, its frames encoded to standardised latents if it holds frames."""
        if isinstance(batch, LatentBatch):
            return batch
        if self.encoder is None:
            with torch.autocast(self.mean.device.type, enabled=False):  # as caches are encoded
                latents = self.statistics.standardise(self._frozen[0](batch.frames))
        else:
            latents = self.statistics.standardise(self.encoder(batch.frames))
        targets = latents
        if self.target_encoder is not None:
            with torch.no_grad():
                targets = self.statistics.standardise(self.target_encoder(batch.frames))
        return LatentBatch(latents, targets, batch.times, batch.valid, batch.ids, batch.context_steps)

    def update_target(self, decay: float) -> None:
        """Move the target encoder towards the trained one: target = decay * target + (1 - decay) * encoder."""
        if self.encoder is not None and self.target_encoder is not None:
            _move(self.target_encoder, self.encoder, decay)

    def update_average(self, decay: float, step: int) -> None:
        """Move the average towards the predictor after `step` steps, as `update_target` does the encoder's.

        Early steps weigh more, by the rule of TensorFlow's `ExponentialMovingAverage`: min(decay, (1 + n) / (10 + n)).
        """
        if self.average is not None:
            _move(self.average, self.predictor, min(decay, (1 + step) / (10 + step)))

    def train(self, mode: bool = True) -> WorldModel:
        super().train(mode)
        for copied in (self.target_encoder, self.average):
            if copied is not None:
                copied.eval()
        return self


@torch.no_grad()
def _move(average: nn.Module, online: nn.Module, decay: float) -> None:
    for target, weight in zip(average.parameters(), online.parameters(), strict=True):
        target.lerp_(weight, 1 - decay)
