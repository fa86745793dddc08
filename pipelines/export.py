"""flcache export CHECKPOINT DIR [KEY=VALUE ...]: what was trained, as folders that can be taken away.

DIR/predictor        `flcache.predictor.load_predictor` opens it
DIR/encoder          a Hugging Face folder: the encoder of the latents that the predictor takes
DIR/target_encoder   the same of its moving average, which made the targets; only where the encoder was trained
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from rich.filesize import decimal

from flcache.batch import step_times
from flcache.cache import CacheSpec, LatentCache
from flcache.config import Config
from flcache.encoder import ContextRule, LatentVideoModel, load_encoder, save_encoder, weight_digest
from flcache.encoder.options import Dtype
from flcache.errors import ConfigError
from flcache.predictor import PredictorCard, save_predictor
from flcache.training import WorldModel, latest_checkpoint, open_checkpoint

from .setup.cache import cache_store
from .setup.encoder import check_encoder, pick_device, with_weights
from .setup.model import load_trained
from .setup.run_config import run_config
from .setup.source import LatentSource, describe_source


def run(checkpoint: Path, directory: Path, overrides: Sequence[str] = ()) -> None:
    """Export `checkpoint`, or the newest one of a `training.dir`, into the new folder `directory`.

    Its weights are those that `flcache evaluate` takes. Raises ConfigError if `directory` exists, SpecMismatch if the
    configured encoder did not make the latents of the run.
    """
    if (checkpoint / "checkpoints").is_dir():
        checkpoint = latest_checkpoint(checkpoint / "checkpoints")
    if not (checkpoint / "run.json").exists():
        raise ConfigError(f"{checkpoint}: no checkpoint; name one, or a training.dir that has checkpoints")
    if directory.exists():
        raise ConfigError(f"{directory}: exists already; name a new folder, or remove it")
    config = run_config(checkpoint, checkpoint.resolve().parent.parent, overrides)
    source = describe_source(config, device=pick_device(config.training.device))
    model = load_trained(config, source, checkpoint)
    encoders = _encoders(config, source, model)
    card = _card(config, source, encoders, checkpoint)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_predictor(partial / "predictor", model.predictor, model.statistics, card)
    for name, encoder in encoders.items():
        save_encoder(encoder, partial / name)
    partial.rename(directory)
    _print(directory, card, encoders)


def _encoders(config: Config, source: LatentSource, model: WorldModel) -> dict[str, LatentVideoModel]:
    """The encoders to export by the names of their folders; none where the latents were imported."""
    if model.encoder is not None and model.target_encoder is not None:
        return {"encoder": model.encoder, "target_encoder": model.target_encoder}
    if source.encoder is not None:
        return {"encoder": source.encoder}
    match source.hard:
        case {"encoder": {"dtype": str(dtype)}, "context": {"mode": str()} as context}:
            named = replace(config.encoder, dtype=cast(Dtype, dtype))
            encoder = load_encoder(named, context=ContextRule.from_dict(context))
            check_encoder(source.hard, encoder, str(config.cache.dir))
            return {"encoder": encoder}
    return {}


def _card(
    config: Config, source: LatentSource, encoders: Mapping[str, LatentVideoModel], checkpoint: Path
) -> PredictorCard:
    record = open_checkpoint(checkpoint).record
    hard, target = dict(source.hard), encoders.get("target_encoder")
    if source.encoder is not None and source.encoder.trainable:  # its latents are others than the run began with
        hard = with_weights(hard, weight_digest(encoders["encoder"].encoder))
    return PredictorCard(
        options=config.predictor,
        latent_shape=source.latent_shape,
        times=_times(config, source),
        seen_until=source.seen_until,
        context_steps=source.context_steps,
        leak=record.leak,
        fingerprint=CacheSpec(hard, {}).fingerprint,
        latents=hard,
        target_weights=weight_digest(target.encoder) if target else None,
        precision=config.training.precision,
        step=record.step,
        leading_tokens=encoders["encoder"].leading_tokens if encoders else None,
    )


def _times(config: Config, source: LatentSource) -> tuple[float, ...] | None:
    """The seconds of a clip's steps: by its rate, else of the first clip of the cache; None if neither is known."""
    match source.hard:
        case {"clip": {"fps": float() | int() as fps, "frames": int(frames)}}:
            seconds = step_times(np.arange(frames) / fps, frames // source.latent_shape[0])
            return tuple(seconds.tolist())
    if config.training.source == "cache":
        return tuple(LatentCache(cache_store(config), "train")[0].times.tolist())
    return None


def _print(directory: Path, card: PredictorCard, encoders: Mapping[str, LatentVideoModel]) -> None:
    for name in ("predictor", *encoders):
        size = sum(path.stat().st_size for path in (directory / name).iterdir())
        print(f"{directory / name}: {decimal(size)}")
    print(f"a predictor of {card.step} steps, for latents {card.fingerprint[:12]}")
    if not encoders:
        print("its latents were imported, so there is no encoder to export")
