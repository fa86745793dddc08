"""flcache baselines --config CONFIG [--json] [KEY=VALUE ...]: how well one predicts without any training."""

from __future__ import annotations

import json
import sys
from itertools import islice

import torch
from rich.console import Console

from flcache.config import Config
from flcache.encoder import encoder_with_predictor, load_own_predictor
from flcache.errors import EncoderError
from flcache.evaluation import Predict, baselines_table, copy_last, evaluate, fit_baselines
from flcache.training import WorldModel

from .setup.encoder import encoder_source, pick_device
from .setup.source import LatentSource, Reading, known_videos, latent_batches, open_source
from .train import build_world_model


def run(config: Config, as_json: bool = False) -> None:
    """Score every baseline on `evaluation.split`; copying the last step takes the place of the prediction."""
    device = pick_device(config.training.device)
    reading = Reading(config.evaluation.split, config.evaluation.batch_size, shuffle=False)
    with open_source(config, reading, device=device) as source:
        model = build_world_model(config, source).to(device)
        result = evaluate(
            copy_last,
            latent_batches(model, source, device),
            seen_until=source.seen_until,
            fingerprint=source.fingerprint,
            allow_leak=config.allow_leak,
            horizons=config.evaluation.horizons,
            baselines=fitted_baselines(config, model, device),
            video_of=known_videos(config, reading.split),
            device=device,
        )
    if as_json:
        print(json.dumps(result.to_json()))
        return
    Console().print(baselines_table(result))
    print(f"the {reading.split} split; ridge and dataset mean fitted to the training clips")


@torch.no_grad()
def fitted_baselines(config: Config, model: WorldModel, device: str) -> dict[str, Predict]:
    """Every baseline, fitted to the first `evaluation.baseline_clips` training clips as `model` sees them."""
    options = config.evaluation
    batch_size = min(options.batch_size, options.baseline_clips)
    with open_source(config, Reading("train", batch_size, shuffle=False), device=device) as source:
        own = _own_predictor(config, source, model, device)
        fitted = fit_baselines(
            islice(latent_batches(model, source, device), options.baseline_clips // batch_size),
            seen_until=source.seen_until,
            ridge_steps=options.ridge_steps,
            horizons=options.horizons,
            allow_leak=config.allow_leak,
        )
        return fitted | own


def _own_predictor(config: Config, source: LatentSource, model: WorldModel, device: str) -> dict[str, Predict]:
    """What the encoder's checkpoint ships to predict the encoder's latents; nothing where these are not those."""
    encoder = encoder_with_predictor(source.hard)
    wanted = config.evaluation.own_predictor and config.encoder.name and not config.encoder_trainable
    if encoder is None or not wanted:
        return {}
    try:
        found = load_own_predictor(encoder_source(config), model.statistics, encoder=encoder, device=device)
    except EncoderError as error:
        print(f"without the baseline own_predictor (evaluation.own_predictor=false): {error}", file=sys.stderr)
        return {}
    return {"own_predictor": found} if found else {}
