"""Processes, devices and precision that a trained model runs with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed

from flcache.evaluation import ALONE, Processes

from .encoder import pick_device, pick_precision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def evaluating_processes(device: str) -> Iterator[tuple[Processes, str]]:
    """The processes of `torchrun` or `accelerate launch`, and the device of this one; otherwise this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, pick_device(device)
        return
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    group = torch.distributed.new_group(backend="gloo")
    yield Processes(state.process_index, state.num_processes, group), str(state.device)
    state.destroy_process_group()  # not after an error, where other processes may still wait in it


@contextmanager
def as_trained(precision: str, device: str) -> Iterator[None]:
    """Inside, or in a function that this decorates, models run in the `training.precision` given; "no" is float32.

    On CUDA float32 matrix products use TF32 where the GPU has it. On a CPU fp16 runs as float32.
    """
    precision = pick_precision(precision, device)
    kind, dtype = torch.device(device).type, DTYPES.get(precision)
    able = dtype is not None and torch.amp.is_autocast_available(kind) and (kind, precision) != ("cpu", "fp16")
    before = torch.get_float32_matmul_precision()
    if kind == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast(kind, dtype=dtype if able else None, enabled=able):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
