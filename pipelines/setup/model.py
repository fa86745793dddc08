"""The configured model: fresh, or with the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from flcache.config import Config
from flcache.errors import TrainingError
from flcache.predictor import build_predictor
from flcache.training import RunRecord, WorldModel, legal_training_boundaries, load_weights, open_checkpoint

from .source import LatentSource


def build_world_model(config: Config, source: LatentSource) -> WorldModel:
    """A fresh predictor for the latents of `source`, with its encoder where `source` holds frames."""
    boundaries = legal_training_boundaries(source.seen_until, allow_leak=config.allow_leak)
    predictor = build_predictor(config.predictor, source.latent_shape)
    objective = config.training.objective
    return WorldModel(predictor, source.statistics, boundaries=boundaries, objective=objective, encoder=source.encoder)


def load_trained(config: Config, source: LatentSource, checkpoint: Path) -> WorldModel:
    """The model of `checkpoint` for evaluation. Raises TrainingError if it does not fit or is damaged."""
    opened = open_checkpoint(checkpoint)
    _check_latents(opened.record, source, checkpoint)
    model = build_world_model(config, source)
    load_weights(opened, model)
    return model.eval()


def _check_latents(record: RunRecord, source: LatentSource, checkpoint: Path) -> None:
    if record.fingerprint != source.known_as(record.fingerprint).fingerprint:
        raise TrainingError(
            f"{checkpoint}: trained on latents {record.fingerprint[:12]}, these are {source.fingerprint[:12]}; name "
            f'the cache it was trained on with "cache.dir", or a checkpoint of this one with --checkpoint'
        )
