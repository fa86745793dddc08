"""The objective: how far predictions are off, over steps whose context has not seen them.

What a predictor learns from are predictions of steps at horizons (`Predictor.forecasts`), and one formula scores them:
the mean distance at each horizon, weighted. The loss of copying is measured on the same predictions, so that every run
is above or below that baseline from its first line.

`layer_norm` and `cosine` count errors relative to the size of a token: that of the last known token at the same place,
so that level and size are learnt too. Evaluation and rollout take predictions as they are.

Shapes: B clips, T steps, H x W patch grid, D channels, P predictions of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flcache.batch import LatentBatch, upload
from flcache.leak import check_boundary, legal_boundaries
from flcache.predictor import Forecast
from flcache.training.options import Distance, Objective

DISTANCES: dict[Distance, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda prediction, target: (prediction - target).abs().mean(-1),
    "l2": lambda prediction, target: (prediction - target).square().mean(-1),
    "smooth_l1": lambda prediction, target: functional.smooth_l1_loss(prediction, target, reduction="none").mean(-1),
    "cosine": lambda prediction, target: (prediction - target).square().sum(-1) / 2,
}
"""From two tensors of tokens (..., D), in float32, to their distances (...). `cosine` gets tokens that are divided by a
length: it is 1 - cosine similarity for those of length 1, and least at the mean of the possible targets."""
LEAST_SIZE = 1.0
"""The deviation of an average standardised token, whose length is this times sqrt(D). Errors of smaller tokens, such as
those of a plain background, are divided by it too, or they would outweigh all others."""


@dataclass(frozen=True)
class PredictionLoss:
    """Batch loss, per-clip loss, metrics."""

    loss: Tensor
    """Scalar with gradient: the weighted mean over horizons of the mean distance there; zero if nothing counts."""
    per_clip: Tensor
    """(B,) detached: the mean over each clip's predictions that count; zero if none does."""
    metrics: dict[str, Tensor]
    """Detached scalars, left on the device: `loss/prediction`, and `loss/copy_last` of the same predictions. Of a flow,
    which is shown noisy targets, also `loss/copy_last_shown`: of copying that makes the best of these."""


def legal_training_boundaries(seen_until: Sequence[int], *, allow_leak: bool) -> list[int]:
    """Where contexts may end: where none has seen its target, or anywhere with `allow_leak`.

    Raises LeakError where no boundary is legal and `allow_leak` is False.
    """
    if allow_leak:
        return list(range(1, len(seen_until)))
    legal = legal_boundaries(seen_until)
    if not legal:
        check_boundary(seen_until, 1)
    return legal


def prediction_loss(
    forecasts: Sequence[Forecast], batch: LatentBatch, boundaries: Sequence[int], objective: Objective
) -> PredictionLoss:
    """Score `forecasts` of `batch`. Gradients reach the predictions, and targets that have one.

    A prediction counts if its context ends at one of `boundaries` and its step is not padding.
    """
    scored = [_score(part, batch, boundaries, objective) for part in forecasts]
    distance, copied, shown, counts = (torch.cat(parts, dim=1) for parts in zip(*scored, strict=True))  # (B, P)
    horizons = torch.cat([part.horizons for part in forecasts])
    weights = _weights(horizons, counts, objective.horizon_weights)
    loss = (distance * weights).sum()
    per_clip = ((distance * counts).sum(1) / counts.sum(1).clamp(min=1)).detach()
    metrics = {"loss/prediction": loss.detach(), "loss/copy_last": (copied * weights).sum()}
    if any(part.shown is not None for part in forecasts):
        metrics["loss/copy_last_shown"] = (shown * weights).sum()
    return PredictionLoss(loss, per_clip, metrics)


def _score(
    part: Forecast, batch: LatentBatch, boundaries: Sequence[int], objective: Objective
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distance of the prediction, of copying, and of copying that is shown what it was, and whether they count; (B, P).

    The mean of two independent estimates of a target, weighted by their precision, has the inverse of the sum of these
    as its squared error: here the copy, and the noisy target divided by its scale.
    """
    targets = batch.targets[:, part.steps]
    origins = part.steps - part.horizons  # the last step that each prediction knew
    last = batch.latents[:, origins]
    with torch.no_grad():
        copied = _distance(last, targets, last, objective)
    shown = copied if part.shown is None else copied / (1 + copied.mean(0) * part.shown[:, None])
    distance = _distance(part.prediction, targets, last, objective)
    if part.clip_weights is not None:
        distance, copied, shown = (each * part.clip_weights[:, None] for each in (distance, copied, shown))
    legal = torch.isin(origins + 1, upload(boundaries, origins.device))
    return distance, copied, shown, batch.valid[:, part.steps] & legal


def _distance(prediction: Tensor, targets: Tensor, last: Tensor, objective: Objective) -> Tensor:
    """(B, P) mean over H and W of the distance of tokens, in float32; `last` (B, P, H, W, D) is what was known last."""
    prediction, targets, last = prediction.float(), targets.float(), last.detach().float()
    if objective.targets == "layer_norm" and objective.distance != "cosine":  # which is relative already
        size = last.std(-1, correction=0, keepdim=True).clamp(min=LEAST_SIZE)
        prediction, targets = prediction / size, targets / size
    if objective.distance == "cosine":
        length = last.norm(dim=-1, keepdim=True).clamp(min=LEAST_SIZE * last.shape[-1] ** 0.5)
        prediction, targets = prediction / length, targets / length
    return DISTANCES[objective.distance](prediction, targets).mean(dim=(2, 3))


def _weights(horizons: Tensor, counts: Tensor, horizon_weights: Sequence[float]) -> Tensor:
    """(B, P) that sum to 1: the weight of a horizon is shared by its predictions that `counts` (B, P) is True for."""
    given = upload(horizon_weights, horizons.device)
    same = (horizons[:, None] == horizons).float()  # (P, P)
    counted = counts.sum(0).float() @ same  # (P,) predictions of that horizon that count
    weights = counts * (given[(horizons - 1).clamp(max=len(given) - 1)] / counted.clamp(min=1))
    return weights / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
