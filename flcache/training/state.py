"""The state of a run between two optimiser steps: written to the files of a checkpoint, read, checked, restored.

Names and shapes are checked against the model that resumes before anything is restored. Tensors that FSDP2 shards are
whole in the files, and sharded anew over any number of processes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flcache.errors import TrainingError
from flcache.training.checkpoint import CONFIG, MODEL, OPTIMISER, STATE, Checkpoint, finite_number, whole_number
from flcache.training.collapse import LatentHealth
from flcache.training.earlier import earlier_optimiser, earlier_state
from flcache.training.sharding import sharded_like, whole

Moments = dict[str, dict[str, Tensor]]
"""AdamW's state of each parameter, by the parameter's name."""
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
_RATES = ("lr", "initial_lr", "eps", "weight_decay")


@dataclass(frozen=True)
class Trained:
    """The objects whose state a checkpoint holds."""

    model: nn.Module
    optimiser: Optimizer
    schedule: LRScheduler
    scaler: Any
    """The `GradScaler` of mixed precision in float16, or None."""


@dataclass(frozen=True)
class Position:
    """Where a run is."""

    step: int
    source: dict[str, Any]
    health: LatentHealth | None
    best: float | None = None
    """The best score of a validation so far."""


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint, checked against the run that resumes."""

    position: Position
    groups: list[dict[str, Any]]
    scaler: dict[str, Any] | None
    weights: dict[str, Tensor]
    moments: Moments


def write_state(folder: Path, trained: Trained, position: Position, *, process: int) -> None:
    """Write the files of a checkpoint. Call it on every process: a sharded tensor is gathered from all of them."""
    weights = {name: _to_file(tensor) for name, tensor in trained.model.state_dict().items()}
    moments = {
        f"{name}.{kind}": _to_file(tensor)
        for name, parameter in _trained_parameters(trained)
        for kind, tensor in trained.optimiser.state.get(parameter, {}).items()
    }
    if process == 0:
        save_file(weights, folder / MODEL, metadata={"format": "pt"})
        save_file(moments, folder / OPTIMISER, metadata={"format": "pt"})
        text = json.dumps(_state_json(trained, position), indent=1, allow_nan=False)
        (folder / STATE).write_text(text + "\n", encoding="utf-8")


def read_state(checkpoint: Checkpoint, trained: Trained) -> Saved:
    """The content of `checkpoint`, checked. Raises TrainingError if it does not fit `trained`, which is not changed."""
    state = earlier_state(checkpoint) if checkpoint.digests is None else checkpoint.json(STATE)
    with checkpoint.reading(STATE):
        position = _position(state, checkpoint.record.step)
        groups = [_group(group) for group in state["groups"]]
        if len(groups) != len(trained.optimiser.param_groups):
            raise ValueError("the optimiser has other groups of parameters than this run")
        scaler = _scaler(state["scaler"], trained.scaler)
    return Saved(position, groups, scaler, _weights(checkpoint, trained.model), _moments(checkpoint, trained))


def restore(saved: Saved, trained: Trained) -> None:
    """Put `trained` into the state that was `saved`."""
    _put_weights(trained.model, saved.weights)
    states = {
        index: {kind: sharded_like(parameter, tensor.clone()) for kind, tensor in saved.moments[name].items()}
        for index, (name, parameter) in enumerate(_trained_parameters(trained))
        if name in saved.moments
    }
    present = trained.optimiser.state_dict()["param_groups"]
    groups = [now | then for now, then in zip(present, saved.groups, strict=True)]
    trained.optimiser.load_state_dict({"state": states, "param_groups": groups})
    _put_schedule(saved, trained.schedule)
    if trained.scaler is not None and saved.scaler is not None:
        trained.scaler.load_state_dict(saved.scaler)


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """The weights of `checkpoint` alone. Raises TrainingError if they are damaged or of another model."""
    _put_weights(model, _weights(checkpoint, model))


@torch.no_grad()
def _put_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        tensor.copy_(sharded_like(tensor, weights[name]))


def _state_json(trained: Trained, position: Position) -> dict[str, Any]:
    health, scaler = position.health, trained.scaler
    return {
        "step": position.step,
        "source": position.source,
        "health": health and [health.deviation, health.rank, health.change],
        "best": position.best,
        "groups": [{name: group[name] for name in (*_RATES, "betas")} for group in trained.optimiser.param_groups],
        "scaler": scaler and scaler.state_dict(),
    }


def _put_schedule(saved: Saved, schedule: LRScheduler) -> None:
    """Restore the schedule: its state follows from the step and the optimiser's groups."""
    follows = {
        "last_epoch": saved.position.step,
        "_step_count": saved.position.step + 1,
        "base_lrs": [group["initial_lr"] for group in saved.groups],
        "_last_lr": [group["lr"] for group in saved.groups],
    }
    schedule.load_state_dict(schedule.state_dict() | follows)


def _position(state: dict[str, Any], step: int) -> Position:
    if whole_number(state["step"]) != step:
        raise ValueError(f"of step {state['step']}, but run.json of step {step}")
    if not isinstance(state["source"], dict):
        raise ValueError("no position in the data")
    health = state["health"]
    if health is not None:
        deviation, rank, *change = map(finite_number, health)  # the first checkpoints have no change
        health = LatentHealth(deviation, rank, *change or [0.0])
    best = state.get("best")  # not in checkpoints from before there were validations
    if best is not None and (type(best) not in (int, float) or not math.isfinite(best)):
        raise ValueError("the best score of a validation is no number")
    return Position(step, state["source"], health, best)


def _group(found: dict[str, Any]) -> dict[str, Any]:
    first, second = map(finite_number, found["betas"])
    if max(first, second) >= 1:
        raise ValueError(f"betas {first} and {second} are not below 1")
    return {name: finite_number(found[name]) for name in _RATES} | {"betas": (first, second)}


def _scaler(found: Any, scaler: Any) -> dict[str, Any] | None:
    """The state `found`, checked; None if either side has no scaler, since the precision may change on resuming."""
    if scaler is None or found is None:
        return None
    checked = {}
    for name, now in scaler.state_dict().items():
        checked[name] = whole_number(found[name]) if type(now) is int else finite_number(found[name])
    return checked


def _weights(checkpoint: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    found, wanted = checkpoint.tensors(MODEL), model.state_dict()
    names = sorted(found.keys() | wanted.keys())
    other = [name for name in names if name not in wanted or not _alike(found.get(name), wanted[name])]
    if other:
        raise TrainingError(
            f"{checkpoint.folder}: its weights are not of the configured predictor, {other[0]} first; use the "
            f"{CONFIG} beside them"
        )
    return found


def _moments(checkpoint: Checkpoint, trained: Trained) -> Moments:
    wanted = dict(_trained_parameters(trained))
    if checkpoint.digests is None:
        found = earlier_optimiser(checkpoint, list(wanted))
    else:
        found = {}
        for name, tensor in checkpoint.tensors(OPTIMISER).items():
            parameter, _, kind = name.rpartition(".")
            found.setdefault(parameter, {})[kind] = tensor
    with checkpoint.reading(OPTIMISER):
        for name, kinds in found.items():
            if name not in wanted or set(kinds) != _MOMENTS:
                raise ValueError(f"{name[:80]} is no parameter that trains here")
            step, *moments = kinds["step"], kinds["exp_avg"], kinds["exp_avg_sq"]
            if not all(_alike(moment, wanted[name]) for moment in moments):
                raise ValueError(f"the moments of {name} have another shape")
            if not isinstance(step, Tensor) or step.shape != () or not math.isfinite(step) or step < 1:
                raise ValueError(f"the moments of {name} have no step")
    return found


def _trained_parameters(trained: Trained) -> list[tuple[str, nn.Parameter]]:
    """Name and parameter in the order of the optimiser."""
    names = {parameter: name for name, parameter in trained.model.named_parameters()}
    return [(names[parameter], parameter) for group in trained.optimiser.param_groups for parameter in group["params"]]


def _alike(found: Any, wanted: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.layout != torch.strided or found.is_quantized:
        return False
    return found.shape == wanted.shape and found.dtype == wanted.dtype


def _to_file(tensor: Tensor) -> Tensor:
    """The whole tensor on the CPU."""
    return whole(tensor).detach().cpu().contiguous()
