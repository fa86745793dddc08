"""The objective: predict every next step from the steps before it, and know what copying would have cost.

Only splits that the leak rule allows count, and only targets that are not padding. The same positions, scored with the
previous step as the prediction, give `loss/copy_last`: a run is above or below that baseline from its first line.

Shapes: B clips, T steps, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flcache.batch import LatentBatch
from flcache.errors import ConfigError, TrainingError
from flcache.leak import check_split, legal_splits

DISTANCES: dict[str, Callable[..., Tensor]] = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "smooth_l1": functional.smooth_l1_loss,
}


@dataclass(frozen=True)
class NextStepLoss:
    """The loss of a batch, whom to blame for it, and what to log."""

    loss: Tensor
    """Scalar with gradient: the mean over all steps that count; zero if none does."""
    per_clip: Tensor
    """(B,) detached: the mean over each clip's steps that count; zero if none does."""
    metrics: dict[str, Tensor]
    """Detached scalars, left on the device: `loss/prediction`, and `loss/copy_last` of the same steps."""


def counted_splits(seen_until: Sequence[int], *, allow_leak: bool) -> list[int]:
    """The splits that training may learn from. Raises LeakError where none is legal and `allow_leak` is False."""
    if allow_leak:
        return list(range(1, len(seen_until)))
    legal = legal_splits(seen_until)
    if not legal:
        check_split(seen_until, 1)
    return legal


def next_step_loss(prediction: Tensor, batch: LatentBatch, splits: Sequence[int], kind: str) -> NextStepLoss:
    """Score `prediction` (B, T - 1, H, W, D) of the steps 1 to T - 1, each made from the steps before it.

    `splits` are the steps that count, from `counted_splits`. Gradients reach the prediction, never the targets.
    """
    targets = batch.targets[:, 1:].detach()
    counts = batch.valid[:, 1:] & _chosen(splits, targets)  # (B, T - 1)
    per_step = _distance(prediction, targets, kind)  # (B, T - 1)
    with torch.no_grad():
        copied = _distance(batch.latents[:, :-1], targets, kind)
        per_clip = (per_step * counts).sum(1) / counts.sum(1).clamp(min=1)
    loss = _mean(per_step, counts)
    metrics = {"loss/prediction": loss.detach(), "loss/copy_last": _mean(copied, counts)}
    return NextStepLoss(loss, per_clip, metrics)


def check_finite(loss: Tensor, per_clip: Tensor, ids: Sequence[str]) -> None:
    """Raises TrainingError naming the clips if `loss` is not finite. `per_clip` (B,) belongs to `ids`. Synchronises."""
    if torch.isfinite(loss):
        return
    blamed = [clip for clip, finite in zip(ids, torch.isfinite(per_clip).tolist(), strict=True) if not finite]
    raise TrainingError(
        f"the loss is {loss.item()}: not finite for clips {', '.join(blamed or ids)}; look at them with "
        '"flcache verify", or lower "training.learning_rate" or "training.clip_norm" if they are sound'
    )


def _distance(prediction: Tensor, targets: Tensor, kind: str) -> Tensor:
    """(B, T) mean over H, W, D of the `kind` of distance, in float32."""
    if kind not in DISTANCES:
        raise ConfigError(f'training.loss: unknown "{kind}"; choose from {", ".join(DISTANCES)}')
    return DISTANCES[kind](prediction.float(), targets.float(), reduction="none").mean(dim=(2, 3, 4))


def _mean(per_step: Tensor, counts: Tensor) -> Tensor:
    """The mean of (B, T) where `counts`; zero, with a gradient of zero, where nothing counts."""
    return (per_step * counts).sum() / counts.sum().clamp(min=1)


def _chosen(splits: Sequence[int], targets: Tensor) -> Tensor:
    """(T - 1,) bool: which of the steps 1 to T - 1 are in `splits`."""
    chosen = torch.zeros(targets.shape[1], dtype=torch.bool, device=targets.device)
    chosen[torch.tensor(splits, dtype=torch.long, device=targets.device) - 1] = True
    return chosen
