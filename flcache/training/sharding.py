"""Weights, gradients and moments sharded over processes by FSDP2, where the configuration of Accelerate asks for it.

Between two steps every parameter of the model is a part of a tensor (`DTensor`). Inside `whole_weights` they are whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn

from flcache.errors import TrainingError
from flcache.training.objective import PredictionLoss


def shard(accelerator: Accelerator) -> None:
    """Let `accelerator` shard as its configuration says, on CPUs too. Call it before anything is prepared.

    Raises TrainingError for kinds of sharding whose parameters cannot be gathered into a checkpoint, and for settings
    of FSDP that do not go with ours.
    """
    state, kind = accelerator.state, accelerator.distributed_type
    if kind == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        # Accelerate looks at this on GPUs alone: on CPUs every process would have whole weights, without a word.
        state.distributed_type = kind = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or (
        kind == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise TrainingError(
            f"{kind.value}: its checkpoints would hold pickles and no whole model; train with plain data parallelism "
            f'(torchrun), or with "fsdp_version: 2" in the configuration of accelerate'
        )
    if accelerator.is_fsdp2:
        _check_plugin(state.fsdp_plugin)
        state.fsdp_plugin.mixed_precision_policy = None  # whole weights are float32, and autocast does the rest
        state.fsdp_plugin.cpu_ram_efficient_loading = False  # it gives weights to the first process alone,
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # and encoders may stay outside of what is sharded


def _check_plugin(plugin: Any) -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy  # slow to import, and rarely needed

    if plugin.activation_checkpointing:
        raise TrainingError(
            "fsdp_activation_checkpointing: set it to false in the configuration of accelerate, and "
            "predictor.checkpoint_activations=true, encoder.checkpoint_activations=true"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise TrainingError(
            "fsdp_offload_params: weights stay on their devices; set it to false in the configuration of accelerate"
        )


def sharded_parts(model: nn.Module) -> list[Any]:
    """The modules of `model` that FSDP2 gathers and shards, each by itself; none without FSDP2."""
    if not hasattr(model, "unshard"):  # the accelerator forgets what it was, once others ask for its state
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def prepared(accelerator: Accelerator, model: nn.Module, optimiser: Any) -> tuple[Any, Any]:
    """`Accelerator.prepare`, of a model that is called with batches and gives a `PredictionLoss`."""
    if accelerator.is_fsdp2:
        _open_to_pytree()
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    for part in sharded_parts(model) if accelerator.device.type == "cpu" else ():
        part.set_force_sum_reduction_for_comms(True)  # gloo has no mean
    return wrapped, optimiser


@contextmanager
def whole_weights(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Inside, modules of `model` can be called by themselves, and on some processes more often than on others.

    Call it on every process, after a step.
    """
    parts = sharded_parts(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        part.reshard()
        part.set_reshard_after_forward(
            part is not model and bool(accelerator.state.fsdp_plugin.reshard_after_forward), recurse=False
        )


def whole(tensor: Tensor) -> Tensor:
    """`tensor`, gathered if it is sharded. Call it on every process."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def sharded_like(like: Any, tensor: Tensor) -> Tensor:
    """`tensor`, sharded as `like` is; scalars never are."""
    if not hasattr(like, "placements") or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # slow to import, and rarely needed

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def _open_to_pytree() -> None:
    """Let FSDP2 find the tensors of a `PredictionLoss`, whose backward it waits for."""
    if PredictionLoss not in torch.utils._pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(PredictionLoss)
