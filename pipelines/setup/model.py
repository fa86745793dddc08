"""The configured model: fresh, or with the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_model

from flcache.config import Config
from flcache.errors import TrainingError
from flcache.training import RunRecord, WorldModel, counted_splits, read_record

from .predictor import configured_predictor
from .source import LatentSource


def build_world_model(config: Config, source: LatentSource) -> WorldModel:
    """A fresh predictor for the latents of `source`, with its encoder where `source` holds frames."""
    splits = counted_splits(source.seen_until, allow_leak=config.allow_leak)
    predictor = configured_predictor(config, source.latent_shape)
    objective = config.training.objective
    return WorldModel(predictor, source.statistics, splits=splits, objective=objective, encoder=source.encoder)


def load_trained(config: Config, source: LatentSource, checkpoint: Path) -> WorldModel:
    """The model of `checkpoint` for evaluation. Raises TrainingError if it is of other latents or another predictor."""
    _check_latents(read_record(checkpoint), source, checkpoint)
    model = build_world_model(config, source)
    try:
        load_model(model, checkpoint / "model.safetensors")
    except (OSError, RuntimeError) as error:
        raise TrainingError(
            f"{checkpoint}: its weights are not of the configured predictor; use the config.yaml beside them: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return model.eval()


def _check_latents(record: RunRecord, source: LatentSource, checkpoint: Path) -> None:
    if record.fingerprint != source.fingerprint:
        raise TrainingError(
            f"{checkpoint}: trained on latents {record.fingerprint[:12]}, these are {source.fingerprint[:12]}; name "
            f'the cache it was trained on with "cache.dir", or a checkpoint of this one with --checkpoint'
        )
