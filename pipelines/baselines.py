"""flcache baselines --config CONFIG [--json] [KEY=VALUE ...]: how well one predicts without any training."""

from __future__ import annotations

import json

from rich.console import Console

from flcache.config import Config
from flcache.evaluation import baselines_table, copy_last, evaluate

from .setup.baselines import fitted_baselines
from .setup.encoder import pick_device
from .setup.model import build_world_model
from .setup.source import Reading, known_videos, latent_batches, open_source


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
