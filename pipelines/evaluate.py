"""flcache evaluate --config CONFIG [--checkpoint P] [--json] [KEY=VALUE ...]: skill per horizon over every baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from flcache.config import Config
from flcache.evaluation import (
    EvaluationResult,
    Processes,
    Sampling,
    detail_table,
    evaluate,
    evaluation_table,
    plot_skill,
    samples_table,
)
from flcache.training import chosen_checkpoint, open_checkpoint

from .setup.baselines import fitted_baselines
from .setup.model import evaluated_latents, load_trained
from .setup.running import as_trained, evaluating_processes
from .setup.source import Reading, known_videos, latent_batches, open_source


def run(config: Config, checkpoint: Path | None = None, as_json: bool = False) -> None:
    """Roll the newest checkpoint, or the named one, out over `evaluation.split` and compare it with every baseline."""
    directory = Path(config.require("training.dir"))
    checkpoint = chosen_checkpoint(directory / "checkpoints", checkpoint)
    with evaluating_processes(config.training.device) as (processes, device):
        result, said = _evaluate(config, checkpoint, processes, device)
    if not processes.main:
        return
    split = config.evaluation.split
    found = {"step": open_checkpoint(checkpoint).record.step, "split": split, **result.to_json(), **said}
    _keep(directory, result, found)
    if as_json:
        print(json.dumps(found))
        return
    Console().print(evaluation_table(result))
    Console().print(detail_table(result))
    if samples := samples_table(result):
        Console().print(samples)
    kept = f"{directory}/evaluation.json, evaluation.csv and skill.png"
    print(f"{checkpoint}: evaluated on the {split} split; kept in {kept}")


def _evaluate(
    config: Config, checkpoint: Path, processes: Processes, device: str
) -> tuple[EvaluationResult, dict[str, Any]]:
    """The result, and the fields of evaluation.json on an encoder that was trained."""
    options = config.evaluation
    reading = Reading(options.split, options.batch_size, False, processes.rank, processes.count)
    with open_source(config, reading, device=device) as source:
        model = load_trained(config, source, checkpoint).to(device)
        predictor, precision = model.predictor, as_trained(config.training.precision, device)
        fingerprint, said = evaluated_latents(source, model, open_checkpoint(checkpoint).record.fingerprint)
        sampling = Sampling(precision(predictor.sample), options.samples, config.seed) if predictor.generative else None
        result = evaluate(
            precision(predictor.predict),
            latent_batches(model, source, device),
            seen_until=source.seen_until,
            fingerprint=fingerprint,
            allow_leak=config.allow_leak,
            horizons=options.horizons,
            baselines=fitted_baselines(config, model, source, device, processes),
            sampling=sampling,
            actions=predictor.num_actions > 0,
            video_of=known_videos(config, options.split),
            device=device,
            processes=processes,
        )
    return result, said


def _keep(directory: Path, result: EvaluationResult, found: dict[str, Any]) -> None:
    text = json.dumps(found, indent=1) + "\n"
    (directory / "evaluation.json").write_text(text, encoding="utf-8")
    with (directory / "evaluation.csv").open("w", encoding="utf-8", newline="") as stream:
        result.write_csv(stream)
    plot_skill(result, directory / "skill.png")
