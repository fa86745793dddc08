"""The optimiser: AdamW over what may train, weight decay only where it belongs, warm-up and cosine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.table import Table
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flcache.errors import TrainingError


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a part of the model has, and how many of them train."""

    total: int
    trainable: int


def build_optimiser(
    parts: Mapping[str, nn.Module], *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> AdamW:
    """AdamW over the trainable parameters of `parts`, each once, in a group that decays and one that does not.

    Matrices named `weight` decay. Biases, norms, embeddings, and bare parameters such as mask tokens do not.
    Raises TrainingError if nothing is trainable.
    """
    decaying: list[nn.Parameter] = []
    staying: list[nn.Parameter] = []
    for owner, name, parameter in _trainable(parts):
        decays = parameter.ndim >= 2 and name == "weight" and not isinstance(owner, nn.Embedding)
        (decaying if decays else staying).append(parameter)
    if not decaying and not staying:
        raise TrainingError(
            f"nothing to train: every parameter of {', '.join(parts)} is frozen; unfreeze some, for example with "
            '"encoder_trainable=true"'
        )
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": staying, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas, fused=True)


def warmup_cosine(optimiser: Optimizer, steps: int, warmup_steps: int, min_fraction: float) -> LambdaLR:
    """Rise linearly over `warmup_steps`, then fall along a cosine to `min_fraction` of the rate at the last step."""

    def fraction(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
        return min_fraction + (1 - min_fraction) * (1 + math.cos(math.pi * progress)) / 2

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


def _count(part: nn.Module) -> ParameterCount:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
    return ParameterCount(sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains))
