"""What a run is made of between two optimiser steps: taken to the files of a checkpoint, read, checked, put back.

Names and shapes are those of the model that resumes, so that what is put back fits, whoever wrote the files. Tensors of
a model that FSDP2 shards are whole in the files and sharded anew on the way back, over any number of processes.
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
from flcache.training.checkpoint import (
    CONFIG,
    MODEL,
    OPTIMISER,
    STATE,
    Checkpoint,
    finite_number,
    whole_number,
)
from flcache.training.collapse import LatentHealth
from flcache.training.earlier import earlier_optimiser, earlier_state

Moments = dict[str, dict[str, Tensor]]
"""What AdamW keeps of a parameter, by the parameter's name."""
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
_RATES = ("lr", "initial_lr", "eps", "weight_decay")


@dataclass(frozen=True)
class Trained:
    """What a checkpoint keeps and restores of a run, beside its position."""

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


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint that fits the run which asked for it."""

    position: Position
    groups: list[dict[str, Any]]
    scaler: dict[str, Any] | None
    weights: dict[str, Tensor]
    moments: Moments


def write_state(folder: Path, trained: Trained, position: Position, *, process: int) -> None:
    """Write the files of a checkpoint. Call it on every process: a sharded tensor is gathered from all of them."""
    weights = {name: _whole(tensor) for name, tensor in trained.model.state_dict().items()}
    moments = {
        f"{name}.{kind}": _whole(tensor)
        for name, parameter in _trained_parameters(trained)
        for kind, tensor in trained.optimiser.state.get(parameter, {}).items()
    }
    if process == 0:
        save_file(weights, folder / MODEL, metadata={"format": "pt"})
        save_file(moments, folder / OPTIMISER, metadata={"format": "pt"})
        text = json.dumps(_state_json(trained, position), indent=1, allow_nan=False)
        (folder / STATE).write_text(text + "\n", encoding="utf-8")


def read_state(checkpoint: Checkpoint, trained: Trained) -> Saved:
    """All that `checkpoint` has; changes nothing. Raises TrainingError if it does not fit."""
    state = earlier_state(checkpoint) if checkpoint.digests is None else checkpoint.json(STATE)
    with checkpoint.reading(STATE):
        position = _position(state, checkpoint.record.step)
        groups = [_group(group) for group in state["groups"]]
        if len(groups) != len(trained.optimiser.param_groups):
            raise ValueError("the optimiser has other groups of parameters than this run")
        scaler = _scaler(state["scaler"], trained.scaler)
    return Saved(position, groups, scaler, _weights(checkpoint, trained.model), _moments(checkpoint, trained))


def restore(saved: Saved, trained: Trained) -> None:
    """Make `trained` what it was when `saved` was written."""
    put_weights(trained.model, saved.weights)
    indices = iter(range(sum(len(group["params"]) for group in trained.optimiser.param_groups)))
    states = {}
    for (name, parameter), index in zip(_trained_parameters(trained), indices, strict=True):
        if name in saved.moments:
            found = saved.moments[name]
            states[index] = {kind: _sharded(tensor.clone(), parameter) for kind, tensor in found.items()}
    present = trained.optimiser.state_dict()["param_groups"]
    groups = [now | then for now, then in zip(present, saved.groups, strict=True)]
    trained.optimiser.load_state_dict({"state": states, "param_groups": groups})
    _put_schedule(saved, trained.schedule)
    if trained.scaler is not None and saved.scaler is not None:
        trained.scaler.load_state_dict(saved.scaler)


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """The weights of `checkpoint` alone. Raises TrainingError if they are damaged or of another model."""
    put_weights(model, _weights(checkpoint, model))


@torch.no_grad()
def put_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        tensor.copy_(_sharded(weights[name], tensor))


def _state_json(trained: Trained, position: Position) -> dict[str, Any]:
    health, scaler = position.health, trained.scaler
    return {
        "step": position.step,
        "source": position.source,
        "health": health and [health.deviation, health.rank, health.change],
        "groups": [{name: group[name] for name in (*_RATES, "betas")} for group in trained.optimiser.param_groups],
        "scaler": scaler and scaler.state_dict(),
    }


def _put_schedule(saved: Saved, schedule: LRScheduler) -> None:
    """A schedule is a function of the step; all else that it holds follows from the groups of the optimiser."""
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
    return Position(step, state["source"], health)


def _group(found: dict[str, Any]) -> dict[str, Any]:
    first, second = map(finite_number, found["betas"])
    if max(first, second) >= 1:
        raise ValueError(f"betas {first} and {second} are not below 1")
    return {name: finite_number(found[name]) for name in _RATES} | {"betas": (first, second)}


def _scaler(found: Any, scaler: Any) -> dict[str, Any] | None:
    """None where either side has no scaler: the precision may change between a run and its continuation."""
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


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor on the CPU, also where each process has a part."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().cpu().contiguous()


def _sharded(tensor: Tensor, like: Any) -> Tensor:
    """`tensor`, divided among the processes as `like` is; scalars are not."""
    if not hasattr(like, "placements") or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # seconds to import, and few runs need it

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
