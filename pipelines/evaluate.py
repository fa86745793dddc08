"""flcache evaluate --config CONFIG [--checkpoint P] [--json] [KEY=VALUE ...]: how good is the prediction, honestly?"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from flcache.config import Config
from flcache.evaluation import (
    EvaluationResult,
    Sampling,
    detail_table,
    evaluate,
    evaluation_table,
    plot_skill,
    samples_table,
)
from flcache.predictor import Predictor
from flcache.training import WorldModel, latest_checkpoint, read_record

from .setup.baselines import fitted_baselines
from .setup.encoder import pick_device
from .setup.model import load_trained
from .setup.source import Reading, known_videos, latent_batches, open_source


def run(config: Config, checkpoint: Path | None = None, as_json: bool = False) -> None:
    """Roll the newest checkpoint, or the named one, out over `evaluation.split` and compare it with every baseline."""
    directory = Path(config.require("training.dir"))
    checkpoint = checkpoint or latest_checkpoint(directory / "checkpoints")
    record, device = read_record(checkpoint), pick_device(config.training.device)
    torch.manual_seed(config.seed)  # for what a flow samples
    reading = Reading(config.evaluation.split, config.evaluation.batch_size, shuffle=False)
    with open_source(config, reading, device=device) as source:
        model = load_trained(config, source, checkpoint).to(device)
        result = evaluate(
            model.predictor.predict,
            latent_batches(model, source, device),
            seen_until=source.seen_until,
            fingerprint=record.fingerprint,
            allow_leak=config.allow_leak,
            horizons=config.evaluation.horizons,
            baselines=fitted_baselines(config, model, device),
            sampling=_sampling(config, model),
            video_of=known_videos(config, reading.split),
            device=device,
        )
    found = {"step": record.step, "split": reading.split, **result.to_json()}
    _keep(directory, result, found)
    if as_json:
        print(json.dumps(found))
        return
    Console().print(evaluation_table(result))
    Console().print(detail_table(result))
    if samples := samples_table(result):
        Console().print(samples)
    kept = f"{directory}/evaluation.json, evaluation.csv and skill.png"
    print(f"{checkpoint}: evaluated on the {reading.split} split; kept in {kept}")


def _sampling(config: Config, model: WorldModel) -> Sampling | None:
    """How a generative predictor is asked for several futures; None for one that gives a single future."""
    if not model.predictor.generative:
        return None
    return Sampling(partial(_draw, model.predictor), config.evaluation.samples)


def _draw(
    predictor: Predictor, context: Tensor, context_times: Tensor, target_times: Tensor, num_samples: int
) -> Tensor:
    """(S, B, K, H, W, D): each prediction of a generative predictor is a sample of its own."""
    return torch.stack([predictor.predict(context, context_times, target_times) for _ in range(num_samples)])


def _keep(directory: Path, result: EvaluationResult, found: dict[str, Any]) -> None:
    text = json.dumps(found, indent=1) + "\n"
    (directory / "evaluation.json").write_text(text, encoding="utf-8")
    with (directory / "evaluation.csv").open("w", encoding="utf-8", newline="") as stream:
        result.write_csv(stream)
    plot_skill(result, directory / "skill.png")
