"""What is trained: a predictor, and with it the encoder where the configuration unfreezes it.

Latents from a cache go straight to the predictor; frames are encoded first. When the encoder trains, the targets come
from an exponential moving average of it, without gradient, or from itself (`EncoderTargets`). Its latents drift: they
are standardised with the statistics of the targets in the batch, so that a space that shrinks makes no error smaller.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from flcache.batch import ChannelStatistics, LatentBatch, VideoBatch
from flcache.encoder import LatentVideoModel
from flcache.predictor import Predictor
from flcache.training.anti_collapse import anti_collapse
from flcache.training.objective import PredictionLoss, prediction_loss
from flcache.training.options import EncoderTargets, Objective
from flcache.training.statistics import as_statistics, batch_moments

Batch = LatentBatch | VideoBatch
STATISTICS_DECAY = 0.95
"""Of the moving average of the targets' mean and variance, for each batch of training."""


class WorldModel(nn.Module):
    """Predictor, channel statistics and, when it trains, the encoder with its moving average.

    With `averaged`, a moving average of the predictor's weights is kept in `average`; `evaluated` is that, or the
    predictor itself. `boundaries` are where a context may end (`legal_training_boundaries`). `forward` takes a
    `LatentBatch` of standardised latents or a `VideoBatch` of frames, and the boundaries in order of preference, and
    returns the loss. A frozen encoder is kept outside the module tree, so that neither checkpoints nor data-parallel
    wrappers include it.

    When the encoder trains, `statistics` follow its targets: a moving average of those of the batches, for evaluation.
    Raises ConfigError if the predictor cannot learn from the objective.
    """

    mean: Tensor
    std: Tensor
    first_mean: Tensor
    first_std: Tensor

    def __init__(
        self,
        predictor: Predictor,
        statistics: ChannelStatistics,
        *,
        boundaries: Sequence[int],
        objective: Objective,
        encoder: LatentVideoModel | None = None,
        encoder_targets: EncoderTargets | None = None,
        averaged: bool = False,
    ) -> None:
        super().__init__()
        predictor.check_objective(objective.distance, objective.targets)
        self.predictor = predictor
        self.average: Predictor | None = copy.deepcopy(predictor).requires_grad_(False) if averaged else None
        self.boundaries = list(boundaries)
        self.objective = objective
        self.encoder_targets = encoder_targets or EncoderTargets()
        self.register_buffer("mean", statistics.mean.clone())
        self.register_buffer("std", statistics.std.clone())
        self.register_buffer("first_mean", statistics.mean.clone(), persistent=False)
        self.register_buffer("first_std", statistics.std.clone(), persistent=False)
        self.encoder: LatentVideoModel | None = None
        self.target_encoder: LatentVideoModel | None = None
        self._frozen: tuple[LatentVideoModel, ...] = ()
        if encoder is not None and encoder.trainable:
            self.encoder = encoder
            if self.encoder_targets.encoder == "ema":
                self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        elif encoder is not None:
            self._frozen = (encoder,)

    @property
    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(self.mean, self.std)

    @property
    def evaluated(self) -> Predictor:
        return self.predictor if self.average is None else self.average

    def forward(self, batch: Batch, boundaries: Sequence[int] | None = None, seed: int = 0) -> PredictionLoss:
        """The loss of `batch`; `seed` decides what an anti-collapse term draws."""
        encoded = self._encoded(batch) if isinstance(batch, VideoBatch) else batch
        latents = self._standardised(encoded) if isinstance(batch, VideoBatch) else encoded
        rollout_steps = self.objective.steps_rolled_out(self.boundaries, latents.latents.shape[1])
        forecasts = self.predictor.forecasts(latents, boundaries or self.boundaries, rollout_steps)
        loss = prediction_loss(forecasts, latents, self.boundaries, self.objective)
        return loss if self.encoder is None else self._regularised(loss, encoded, seed)

    def to_latents(self, batch: Batch) -> LatentBatch:
        """`batch`, its frames encoded to standardised latents if it holds frames."""
        return batch if isinstance(batch, LatentBatch) else self._standardised(self._encoded(batch))

    def to_first_latents(self, batch: VideoBatch) -> Tensor:
        """(B, T, H, W, D) of an encoder that trains, in the units that they had when the run began."""
        assert self.encoder is not None
        return self._first_statistics.standardise(self.encoder(batch.frames))

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

    @property
    def _first_statistics(self) -> ChannelStatistics:
        return ChannelStatistics(self.first_mean, self.first_std)

    def _encoded(self, batch: VideoBatch) -> LatentBatch:
        """The latents as they leave the encoder, and the targets."""
        if self.encoder is None:
            with torch.autocast(self.mean.device.type, enabled=False):  # as caches are encoded
                latents = targets = self._frozen[0](batch.frames)
        else:
            latents = self.encoder(batch.frames)
            targets = latents.view_as(latents)  # not the same object: the encoder trains
        if self.target_encoder is not None:
            with torch.no_grad():
                targets = self.target_encoder(batch.frames)
        return LatentBatch(latents, targets, batch.times, batch.valid, batch.ids, batch.context_steps, batch.arrays)

    def _standardised(self, encoded: LatentBatch) -> LatentBatch:
        statistics = self._current(encoded) if self.encoder is not None and self.training else self.statistics
        latents = targets = statistics.standardise(encoded.latents)
        if encoded.targets is not encoded.latents:
            targets = statistics.standardise(encoded.targets)
        return replace(encoded, latents=latents, targets=targets)

    def _current(self, encoded: LatentBatch) -> ChannelStatistics:
        """The statistics of the targets in the batches of all processes, which `statistics` follow."""
        mean, variance, tokens = batch_moments(encoded.targets, encoded.valid)
        mean = torch.where(tokens > 0, mean, self.mean)
        variance = torch.where(tokens > 0, variance, self.std.square())
        with torch.no_grad():
            self.mean.lerp_(mean, 1 - STATISTICS_DECAY)
            self.std.copy_(self.std.square().lerp(variance, 1 - STATISTICS_DECAY).sqrt())
        return as_statistics(mean, variance)

    def _regularised(self, loss: PredictionLoss, encoded: LatentBatch, seed: int) -> PredictionLoss:
        """`loss`, and the anti-collapse term of the latents in `encoded`."""
        kind = self.encoder_targets.anti_collapse
        if kind == "none":
            return loss
        term = anti_collapse(kind, self._first_statistics.standardise(encoded.latents), encoded.valid, seed)
        metrics = {**loss.metrics, "loss/anti_collapse": term.detach()}
        return replace(loss, loss=loss.loss + self.encoder_targets.weight * term, metrics=metrics)


@torch.no_grad()
def _move(average: nn.Module, online: nn.Module, decay: float) -> None:
    for target, weight in zip(average.parameters(), online.parameters(), strict=True):
        target.lerp_(weight, 1 - decay)
