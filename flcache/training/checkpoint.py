"""Checkpoints: written under a temporary name, renamed when whole, found again by number.

    checkpoints/step-00000300/
        model.safetensors   predictor, channel statistics, and the encoders when they train
        optimizer.bin, random_states_*.pkl, custom_checkpoint_*.pkl    by Accelerate: optimiser, RNG, schedule, position
        config.yaml         the configuration of the run
        run.json            step, fingerprint, latent shape, whether the context leaked

A folder with a temporary name is what a killed run leaves; it is never read and is removed by the next save.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from flcache.errors import TrainingError

PREFIX = "step-"
TEMPORARY = "writing-"


@dataclass(frozen=True)
class RunRecord:
    """What a checkpoint says about the run it belongs to."""

    step: int
    fingerprint: str
    latent_shape: tuple[int, int, int, int]
    """(T, H, W, D) of the clips it was trained on."""
    leak: bool


def save_checkpoint(accelerator: Accelerator, folder: Path, record: RunRecord, config: str, *, keep: int) -> Path:
    """Write a checkpoint below `folder`, with the newest `keep` kept. Call it on every process."""
    final = folder / f"{PREFIX}{record.step:08d}"
    temporary = folder / f"{TEMPORARY}{record.step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / "config.yaml").write_text(config, encoding="utf-8")
        (temporary / "run.json").write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
        _flush(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _remove_old(folder, keep)
    accelerator.wait_for_everyone()
    return final


def latest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint below `folder`. Raises TrainingError where there is none."""
    found = _checkpoints(folder)
    if not found:
        raise TrainingError(f'{folder}: no checkpoint; run "flcache train" first, or name one with --checkpoint')
    return found[-1]


def has_checkpoint(folder: Path) -> bool:
    return bool(_checkpoints(folder))


def read_record(checkpoint: Path) -> RunRecord:
    """What `checkpoint` says of its run. Raises TrainingError where it is not a checkpoint."""
    try:
        fields: dict[str, Any] = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
        return RunRecord(**{**fields, "latent_shape": tuple(fields["latent_shape"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{checkpoint}: not a checkpoint of flcache: {error}") from error


def check_same_run(found: RunRecord, wanted: RunRecord, checkpoint: Path) -> None:
    """Raises TrainingError where `checkpoint` was trained on other latents than this run has."""
    for name in ("fingerprint", "latent_shape"):
        before, now = getattr(found, name), getattr(wanted, name)
        if before != now:
            raise TrainingError(
                f"{checkpoint}: trained on other latents: {name} was {before}, is {now}; use the cache it was "
                f'trained on, or start anew in another "training.dir"'
            )


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "run.json").is_file())


def _flush(folder: Path) -> None:
    """fsync every file of `folder` and the folder itself, so that the rename never outlives its bytes."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_old(folder: Path, keep: int) -> None:
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    for leftover in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover)
