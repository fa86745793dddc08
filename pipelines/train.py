"""flcache train --config CONFIG [--resume] [KEY=VALUE ...]: a source of latents in, a predictor out.

`torchrun --nproc-per-node N -m flcache.pipelines.cli train ...` trains on N processes.
"""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch import nn

from flcache.config import Config, to_yaml
from flcache.errors import ConfigError, TrainingError
from flcache.training import (
    Run,
    RunRecord,
    build_optimiser,
    count_parameters,
    has_checkpoint,
    latest_checkpoint,
    parameter_table,
    read_record,
    warmup_cosine,
)

from .setup.model import build_world_model
from .setup.progress import Progress
from .setup.source import LatentSource, Reading, open_source


def run(config: Config, resume: bool = False) -> None:
    """Train to `training.steps`; with `resume` from the newest checkpoint, if there is one."""
    directory = Path(config.require("training.dir"))
    if config.encoder_trainable and config.training.source == "cache":
        raise ConfigError("encoder_trainable: latents in a cache train no encoder; set training.source=videos")
    checkpoints = directory / "checkpoints"
    continues = has_checkpoint(checkpoints)
    if continues and not resume:
        step = read_record(latest_checkpoint(checkpoints)).step
        raise TrainingError(
            f'{directory}: holds a run of {step} steps; continue it with --resume, or choose another "training.dir"'
        )
    if continues and read_record(latest_checkpoint(checkpoints)).step >= config.training.steps:
        print(f"{latest_checkpoint(checkpoints)}: all {config.training.steps} steps are done")
        return
    accelerator = _accelerator(config)
    set_seed(config.seed)
    reading = Reading("train", config.training.batch_size, True, accelerator.process_index, accelerator.num_processes)
    with open_source(config, reading, device=accelerator.device.type) as source:
        if continues:
            source = source.known_as(read_record(latest_checkpoint(checkpoints)).fingerprint)
        training_run = _build(config, accelerator, source, directory)
        if continues:
            training_run.resume()
        _fit(config, training_run)
    accelerator.end_training()


def _accelerator(config: Config) -> Accelerator:
    training = config.training
    return Accelerator(
        cpu=training.device == "cpu",
        mixed_precision=training.precision,
        gradient_accumulation_steps=training.accumulate,
    )


def _build(config: Config, accelerator: Accelerator, source: LatentSource, directory: Path) -> Run:
    model = build_world_model(config, source)
    parts: dict[str, nn.Module] = {"predictor": model.predictor}
    if source.encoder is not None:
        parts["encoder"] = source.encoder
    if accelerator.is_main_process:
        Console(stderr=True).print(parameter_table(count_parameters(parts)))
    optimiser = build_optimiser(parts, config.training)
    return Run(
        accelerator,
        model,
        source.batches,
        optimiser,
        warmup_cosine(optimiser, config.training),
        directory=directory,
        record=RunRecord(0, source.fingerprint, source.latent_shape, source.leak),
        config=to_yaml(config),
    )


def _fit(config: Config, training_run: Run) -> None:
    with Progress("Training", config.training.steps, "steps", done=training_run.step) as progress:

        def on_step(step: int, metrics: dict[str, float]) -> None:
            progress.advance(note=_describe(metrics))

        training_run.fit(config.training, on_step)


def _describe(metrics: dict[str, float]) -> str:
    if not metrics:
        return ""
    copied = metrics.get("loss/copy_last_shown", metrics["loss/copy_last"])  # of a flow, on its own terms
    return f"loss {metrics['loss']:.4f}, copying the last step {copied:.4f}"
