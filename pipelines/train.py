"""flcache train --config CONFIG [--resume] [KEY=VALUE ...]: a source of latents in, a predictor out.

`torchrun --nproc-per-node N --no-python flcache train ...` trains on N processes.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from flcache.config import Config, to_yaml
from flcache.errors import ConfigError, TrainingError
from flcache.training import (
    Run,
    RunRecord,
    agreed_checkpoint,
    build_optimiser,
    check_trackers,
    learning_rate_schedule,
    open_checkpoint,
    parameter_lines,
    shard,
)

from .setup.continuing import as_begun, check_settings
from .setup.encoder import pick_device, pick_precision, print_choice
from .setup.model import build_world_model, check_encoder_targets
from .setup.progress import Progress
from .setup.signals import EndedBy, announced_end
from .setup.source import LatentSource, Reading, open_source
from .setup.validation import open_validation


def run(config: Config, resume: bool = False) -> None:
    """Train to `training.steps`; with `resume` from the newest checkpoint, if there is one.

    Raises EndedBy, with a checkpoint written, if SIGTERM or SIGUSR1 asked any process to stop.
    """
    directory = Path(config.require("training.dir"))
    if config.encoder_trainable and config.training.source == "cache":
        raise ConfigError("encoder_trainable: latents in a cache train no encoder; set training.source=videos")
    if config.training.augment and config.training.source == "cache":
        raise ConfigError("training.augment: latents in a cache have no pixels to crop; set training.source=videos")
    if config.training.augment and config.training.augment.flip and config.predictor.actions:
        raise ConfigError("training.augment.flip: actions are those of videos as they are; set it to false")
    check_encoder_targets(config)
    check_trackers(config.training.trackers)
    accelerator = _accelerator(config)
    newest = agreed_checkpoint(accelerator, directory / "checkpoints")
    if newest is not None:
        config = as_begun(config, newest)
    if newest is not None and _is_done(config, newest, resume, accelerator):
        accelerator.end_training()
        return
    set_seed(config.seed)
    reading = Reading("train", config.training.batch_size, True, accelerator.process_index, accelerator.num_processes)
    with open_source(config, reading, device=str(accelerator.device)) as source:
        if newest is not None:
            source = source.known_as(open_checkpoint(newest).record.fingerprint)
        training_run = _build(config, accelerator, source, directory)
        if newest is not None:
            training_run.resume(newest)
        stopped = _fit(config, training_run, source)
        if stopped:
            accelerator.print(f"step {training_run.step}: checkpoint written; go on with --resume")
    accelerator.end_training()
    if stopped:
        raise EndedBy(stopped)


def _is_done(config: Config, newest: Path, resume: bool, accelerator: Accelerator) -> bool:
    """Whether the run of `newest` has all its steps. Raises TrainingError if it cannot be continued as asked."""
    step = open_checkpoint(newest).record.step
    if not resume:
        raise TrainingError(
            f"{newest.parent.parent}: holds a run of {step} steps; continue it with --resume, or choose another "
            f'"training.dir"'
        )
    if step >= config.training.steps:
        accelerator.print(f"{newest}: all {config.training.steps} steps are done")
        return True
    for change in check_settings(config, newest):
        accelerator.print(f"continued with {change}")
    return False


def _accelerator(config: Config) -> Accelerator:
    training = config.training
    device = torch.device(pick_device(training.device))
    if device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"training.device={training.device} is one device for several processes; set {device.type}")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
        if device.index is not None:
            torch.cuda.set_device(device)
    precision = pick_precision(training.precision, str(device))
    if training.precision == "auto":
        print_choice("training.precision", precision, str(device))
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        gradient_accumulation_steps=training.accumulate,
    )
    if accelerator.device.type != device.type:
        raise ConfigError(
            f"training.device={training.device}: accelerate chose {accelerator.device}; set that, or change the "
            "configuration of accelerate"
        )
    shard(accelerator)
    return accelerator


def _build(config: Config, accelerator: Accelerator, source: LatentSource, directory: Path) -> Run:
    model = build_world_model(config, source)
    parts: dict[str, nn.Module] = {"predictor": model.predictor}
    if source.encoder is not None:
        parts["encoder"] = source.encoder
    if accelerator.is_main_process:
        print("Parameters", *parameter_lines(parts), sep="\n", file=sys.stderr)
        if accelerator.is_fsdp2:
            print(f"weights are sharded over {accelerator.num_processes} processes", file=sys.stderr)
    optimiser = build_optimiser(parts, config.training)
    return Run(
        accelerator,
        model,
        source.batches,
        optimiser,
        learning_rate_schedule(optimiser, config.training),
        directory=directory,
        record=RunRecord(0, source.fingerprint, source.latent_shape, source.leak),
        config=to_yaml(config),
        seed=config.seed,
    )


def _fit(config: Config, training_run: Run, source: LatentSource) -> int:
    """Train; the number of the signal that ended it early, or 0."""
    title, steps, skill = "Training", config.training.steps, ""
    with (
        open_validation(config, training_run.accelerator, training_run.model, source) as validate,
        announced_end() as asked,
        Progress(title, steps, "steps", done=training_run.step) as progress,
    ):

        def on_step(step: int, metrics: dict[str, float]) -> None:
            nonlocal skill
            skill = _describe_skill(metrics) or skill
            progress.advance(note=_describe(metrics) + skill if metrics else "")

        return training_run.fit(config.training, on_step, asked, validate)


def _describe(metrics: dict[str, float]) -> str:
    copied = metrics.get("loss/copy_last_shown", metrics["loss/copy_last"])  # of a flow, on its own terms
    return f"loss {metrics['loss/prediction']:.4f}, copying the last step {copied:.4f}"


def _describe_skill(metrics: dict[str, float]) -> str:
    """Mean skill over copying, and over the strongest baseline; empty without a validation."""
    means = {name.split("/")[1]: value for name, value in metrics.items() if re.fullmatch("validation/[^/]+", name)}
    shown = dict.fromkeys(["copy_last", min(means, key=means.__getitem__)]) if means else {}
    said = " and ".join(f"{means[name]:.3f} over {name.replace('_', ' ')}" for name in shown)
    return f", validation skill {said}" if said else ""
