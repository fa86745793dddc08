"""The optimiser: AdamW over what may train, weight decay only where it belongs, warm-up and cosine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flcache.errors import TrainingError
from flcache.training.options import TrainingOptions


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a part of the model has, and how many of them train."""

    total: int
    trainable: int


def build_optimiser(parts: Mapping[str, nn.Module], options: TrainingOptions) -> AdamW:
    """AdamW over the trainable parameters of `parts`, each once, in a group that decays and one that does not.

    Matrices named `weight` decay. Biases, norms, embeddings, and bare parameters such as mask tokens do not.
    Raises TrainingError if nothing is trainable, and for weights too coarse to train.
    """
    decaying: list[nn.Parameter] = []
    staying: list[nn.Parameter] = []
    for owner, name, parameter in _trainable(parts):
        _check_fine_enough(parameter)
        decays = parameter.ndim >= 2 and name == "weight" and not isinstance(owner, nn.Embedding)
        (decaying if decays else staying).append(parameter)
    if not decaying and not staying:
        raise TrainingError(
            f"nothing to train: every parameter of {', '.join(parts)} is frozen; unfreeze some, for example with "
            '"encoder_trainable=true"'
        )
    groups = [{"params": decaying, "weight_decay": options.weight_decay}, {"params": staying, "weight_decay": 0.0}]
    used = [group for group in groups if group["params"]]
    return AdamW(used, lr=options.learning_rate, betas=options.betas, fused=True)


def warmup_cosine(optimiser: Optimizer, options: TrainingOptions) -> LambdaLR:
    """Rise linearly over `warmup_steps`, then fall along a cosine to `min_learning_rate_fraction` at the last step."""
    warmup, least = options.warmup_steps, options.min_learning_rate_fraction

    def fraction(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, options.steps - 1 - warmup))
        return least + (1 - least) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimiser, fraction)


def count_parameters(parts: Mapping[str, nn.Module]) -> dict[str, ParameterCount]:
    """The count of each part, in order. Works on the meta device."""
    return {name: _count(part) for name, part in parts.items()}


def parameter_table(counts: Mapping[str, ParameterCount]) -> Table:
    """`counts` and their sum, for the terminal."""
    table = Table("part", title="parameters")
    table.add_column("total", justify="right")
    table.add_column("trainable", justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count.total:,}", f"{count.trainable:,}")
    table.add_section()
    total, trainable = (sum(getattr(count, kind) for count in counts.values()) for kind in ("total", "trainable"))
    table.add_row("all", f"{total:,}", f"{trainable:,}")
    return table


def _trainable(parts: Mapping[str, nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every trainable parameter once, with the module that owns it and its name there."""
    seen: set[nn.Parameter] = set()
    for part in parts.values():
        for owner in part.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if parameter.requires_grad and parameter not in seen:
                    seen.add(parameter)
                    yield owner, name, parameter


def _check_fine_enough(parameter: nn.Parameter) -> None:
    """In bfloat16 neighbouring numbers differ by 1/256: smaller steps, and all those of a moving average, are lost."""
    if parameter.dtype != torch.float32:
        dtype = str(parameter.dtype).removeprefix("torch.")
        raise TrainingError(
            f"{dtype} weights are too coarse to train: set encoder.dtype=float32, and training.precision=bf16 to "
            "compute in bfloat16"
        )


def _count(part: nn.Module) -> ParameterCount:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
    return ParameterCount(sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains))
