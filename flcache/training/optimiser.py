"""The optimiser: AdamW with and without weight decay, warm-up and schedules; parameter counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flcache.encoder import LatentVideoModel, layers_above
from flcache.errors import TrainingError
from flcache.training.options import TrainingOptions


def build_optimiser(parts: Mapping[str, nn.Module], options: TrainingOptions) -> AdamW:
    """AdamW over the trainable parameters of `parts`, each once, for each learning rate in a group that decays and one
    that does not.

    Parameters of an encoder have rates of their own (`encoder_learning_rate`, `layer_decay`). Matrices named `weight`
    decay. Biases, norms, embeddings, and bare parameters such as mask tokens do not.
    Raises TrainingError if nothing is trainable, and for weights too coarse to train.
    """
    found: dict[float, tuple[list[nn.Parameter], list[nn.Parameter]]] = {}
    rates = _encoder_rates(parts, options)
    for owner, name, parameter in _trainable(parts):
        if parameter.dtype != torch.float32:  # steps below 1/256 of a weight would be lost in bfloat16
            raise TrainingError(
                f"{str(parameter.dtype).removeprefix('torch.')} weights are too coarse to train: set "
                "encoder.dtype=float32, and training.precision=bf16 to compute in bfloat16"
            )
        decays = parameter.ndim >= 2 and name == "weight" and not isinstance(owner, nn.Embedding)
        found.setdefault(rates.get(parameter, options.learning_rate), ([], []))[0 if decays else 1].append(parameter)
    if not found:
        raise TrainingError(
            f"nothing to train: every parameter of {', '.join(parts)} is frozen; unfreeze some, for example with "
            '"encoder_trainable=true"'
        )
    groups = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for rate, kinds in found.items()
        for parameters, decay in zip(kinds, (options.weight_decay, 0.0), strict=True)
        if parameters
    ]
    return AdamW(groups, lr=options.learning_rate, betas=options.betas, fused=True)


def _encoder_rates(parts: Mapping[str, nn.Module], options: TrainingOptions) -> dict[nn.Parameter, float]:
    """Learning rates after the warm-up of the parameters of encoders among `parts`."""
    highest, decay = options.encoder_learning_rate or options.learning_rate, options.layer_decay
    rates: dict[nn.Parameter, float] = {}
    for part in parts.values():
        if isinstance(part, LatentVideoModel):
            rates |= dict.fromkeys(part.parameters(), highest)
            if part.trainable and decay != 1:
                rates |= {parameter: highest * decay**above for parameter, above in layers_above(part).items()}
    return rates


def learning_rate_schedule(optimiser: Optimizer, options: TrainingOptions) -> LambdaLR:
    """Rise linearly over `warmup_steps`, then follow `schedule`, down to `min_learning_rate_fraction` at the last step.

    `cosine` falls from the warm-up on, `wsd` linearly over the last `decay_fraction` of all steps (warm-up, stable,
    decay: MiniCPM, arXiv 2404.06395), `constant` not at all.
    """
    warmup, least, last = options.warmup_steps, options.min_learning_rate_fraction, options.steps - 1

    def fraction(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if options.schedule == "constant":
            return 1.0
        if options.schedule == "cosine":
            progress = min(1.0, (step - warmup) / max(1, last - warmup))
            return least + (1 - least) * (1 + math.cos(math.pi * progress)) / 2
        left = max(0, last - step) / max(1, round(options.decay_fraction * options.steps))
        return least + (1 - least) * min(1.0, left)

    return LambdaLR(optimiser, fraction)


def parameter_lines(parts: Mapping[str, nn.Module]) -> list[str]:
    """Total and trainable parameters of each part and of all, as a table of text. Works on the meta device."""
    counts = {name: (_count(part), _count(part, trainable=True)) for name, part in parts.items()}
    counts["together"] = (sum(total for total, _ in counts.values()), sum(trains for _, trains in counts.values()))
    rows = [f"{name:10} {total:>15,} {trains:>15,}" for name, (total, trains) in counts.items()]
    return [f"{'':10} {'total':>15} {'trainable':>15}", *rows]


def _trainable(parts: Mapping[str, nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every trainable parameter once, with the module that owns it and its name there."""
    seen: set[nn.Parameter] = set()
    for part in parts.values():
        for owner in part.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if parameter.requires_grad and parameter not in seen:
                    seen.add(parameter)
                    yield owner, name, parameter


def _count(part: nn.Module, *, trainable: bool = False) -> int:
    return sum(weight.numel() for weight in part.parameters() if weight.requires_grad or not trainable)
