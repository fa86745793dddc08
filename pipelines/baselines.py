"""flcache baselines --config CONFIG [--json] [KEY=VALUE ...]: how good are predictions without training?"""

from __future__ import annotations

import json

from rich.console import Console

from flcache.config import Config
from flcache.evaluation import EvaluationResult, Processes, baselines_table, copy_last, evaluate

from .setup.baselines import fitted_baselines
from .setup.model import build_world_model
from .setup.running import evaluating_processes
from .setup.source import Reading, known_videos, latent_batches, open_source


def run(config: Config, as_json: bool = False) -> None:
    """Score every baseline on `evaluation.split`; copying the last step takes the place of the prediction."""
    with evaluating_processes(config.training.device) as (processes, device):
        result = _evaluate(config, processes, device)
    if not processes.main:
        return
    if as_json:
        print(json.dumps(result.to_json()))
        return
    Console().print(baselines_table(result))
    print(f"the {config.evaluation.split} split; ridge and dataset mean fitted to the training clips")


def _evaluate(config: Config, processes: Processes, device: str) -> EvaluationResult:
    split, batch_size = config.evaluation.split, config.evaluation.batch_size
    reading = Reading(split, batch_size, False, processes.rank, processes.count)
    with open_source(config, reading, device=device) as source:
        model = build_world_model(config, source).to(device)
        return evaluate(
            copy_last,
            latent_batches(model, source, device),
            seen_until=source.seen_until,
            fingerprint=source.fingerprint,
            allow_leak=config.allow_leak,
            horizons=config.evaluation.horizons,
            baselines=fitted_baselines(config, model, source, device, processes),
            video_of=known_videos(config, split),
            device=device,
            processes=processes,
        )
