"""Checkpoints from before `state.json`: pickles of torch, read by its unpickler for tensors and plain values alone.

    optimizer.bin            the optimiser, with numbers for its parameters
    custom_checkpoint_1.pkl  step, position in the data, latents' spread at the start
    scaler.pt                loss scale of float16
    custom_checkpoint_0.pkl  never opened: the schedule follows from step and optimiser
    random_states_0.pkl      never opened: what is drawn follows from seed and step

No class or function that a file names is imported, except those of torch that build tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flcache.training.checkpoint import Checkpoint, whole_number

_OPTIMISER, _RUN, _SCALER = "optimizer.bin", "custom_checkpoint_1.pkl", "scaler.pt"
_ZIP = b"PK\x03\x04"


def earlier_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of `state.json` in later checkpoints, unchecked."""
    run, optimiser = _load(checkpoint, _RUN), _load(checkpoint, _OPTIMISER)
    scaler = _load(checkpoint, _SCALER) if (checkpoint.folder / _SCALER).exists() else None
    with checkpoint.reading(_RUN):
        state = {name: run[name] for name in ("step", "source", "health")}
    with checkpoint.reading(_OPTIMISER):
        return state | {"groups": optimiser["param_groups"], "scaler": scaler}


def earlier_optimiser(checkpoint: Checkpoint, names: list[str]) -> dict[str, dict[str, Tensor]]:
    """The moments of each parameter by its name, unchecked; `names` are those of the parameters in their order."""
    found = _load(checkpoint, _OPTIMISER)
    with checkpoint.reading(_OPTIMISER):
        if sum(len(group["params"]) for group in found["param_groups"]) != len(names):
            raise ValueError("it trains other parameters than this run")
        return {names[whole_number(index)]: dict(moments) for index, moments in found["state"].items()}


def _load(checkpoint: Checkpoint, name: str) -> Any:
    """The tensors and plain values in a file of torch. Raises TrainingError."""
    with checkpoint.reading(name):
        path = checkpoint.folder / name
        if not path.is_file():
            raise ValueError("no such file")
        with path.open("rb") as stream:
            if stream.read(len(_ZIP)) != _ZIP:  # torch's older pickle format, which flcache never wrote
                raise ValueError("not a file of torch")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle may raise anything
            raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
