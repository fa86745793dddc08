"""The configured model: fresh, or with the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flcache.batch import ChannelStatistics
from flcache.cache import CacheSpec
from flcache.config import Config
from flcache.encoder import weight_digest
from flcache.errors import ConfigError, TrainingError
from flcache.predictor import build_predictor
from flcache.training import WorldModel, legal_training_boundaries, load_weights, open_checkpoint

from .encoder import with_weights
from .source import LatentSource


def check_encoder_targets(config: Config) -> None:
    """Raises ConfigError for options of an encoder that trains, where none does."""
    if config.training.encoder_targets and not config.encoder_trainable:
        raise ConfigError(
            "training.anti_collapse, training.target_encoder: a frozen encoder cannot collapse; set "
            "encoder_trainable=true, or leave both at their defaults"
        )


def build_world_model(config: Config, source: LatentSource, statistics: ChannelStatistics | None = None) -> WorldModel:
    """A fresh predictor for the latents of `source`, with its encoder where `source` holds frames."""
    boundaries = legal_training_boundaries(source.seen_until, allow_leak=config.allow_leak)
    predictor = build_predictor(config.predictor, source.latent_shape, source.num_actions)
    if predictor.num_actions and statistics is None:
        predictor.standardise_actions(source.action_statistics())
    return WorldModel(
        predictor,
        statistics or source.statistics(),
        boundaries=boundaries,
        objective=config.training.objective,
        encoder=source.encoder,
        encoder_targets=config.training.encoder_targets,
        averaged=config.training.ema is not None,
    )


def load_trained(config: Config, source: LatentSource, checkpoint: Path) -> WorldModel:
    """The model of `checkpoint` in eval mode; its predictor is the average of weights where the run kept one.

    Raises TrainingError if it does not fit or is damaged.
    """
    opened = open_checkpoint(checkpoint)
    trained = opened.record.fingerprint
    if trained != source.known_as(trained).fingerprint:
        raise TrainingError(
            f"{checkpoint}: trained on latents {trained[:12]}, these are {source.fingerprint[:12]}; name the cache it "
            f'was trained on with "cache.dir", or a checkpoint of this one with --checkpoint'
        )
    unknown = torch.ones(source.latent_shape[-1])  # the weights include the statistics
    model = build_world_model(config, source, ChannelStatistics(unknown, unknown))
    load_weights(opened, model)
    model.predictor, model.average = model.evaluated, None
    return model.eval()


def evaluated_latents(source: LatentSource, model: WorldModel, trained: str) -> tuple[str, dict[str, Any]]:
    """The fingerprint of the targets that `model` is evaluated on, and fields for evaluation.json if its encoder was
    trained, which began with latents of the fingerprint `trained`."""
    if model.encoder is None:
        return trained, {}
    encoders = model.target_encoder or model.encoder, model.encoder
    target, online = (weight_digest(encoder.encoder) for encoder in encoders)
    hard = with_weights(source.hard, target)
    said = {"trained_from": trained, "target_weights": target, "online_weights": online}
    return CacheSpec(hard, {}).fingerprint, {"end_to_end": said}
