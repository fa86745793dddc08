"""The objective: how far predictions are off, over steps whose context has not seen them.

`causal` predictors learn by teacher forcing (every step from the true steps before it), and from a rollout of a random
prefix in which each prediction is made from the predictions before it. The others predict all that follows a random
legal split. All of it comes down to predictions of a step at a horizon, which one formula scores: the mean at each
horizon, weighted. The loss of copying is measured on the same, so that every run is above or below that baseline from
its first line. Random choices come from torch's generator alone: a resumed run repeats them.

Shapes: B clips, T steps, H x W patch grid, D channels, P predictions of a clip.
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
from flcache.predictor import CausalPredictor, FlowMatchingPredictor, Predictor
from flcache.training.options import Distance, Objective

DISTANCES: dict[Distance, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda prediction, target: (prediction - target).abs().mean(-1),
    "l2": lambda prediction, target: (prediction - target).square().mean(-1),
    "smooth_l1": lambda prediction, target: functional.smooth_l1_loss(prediction, target, reduction="none").mean(-1),
    "cosine": lambda prediction, target: 1 - functional.cosine_similarity(prediction, target, dim=-1),
}
"""Of tokens (..., D), in float32: (...)."""


@dataclass(frozen=True)
class Forecast:
    """Predictions of some steps of a batch, each some steps ahead of the last one it was made from."""

    prediction: Tensor
    """(B, P, H, W, D)"""
    steps: Tensor
    """(P,) the steps that are predicted."""
    horizons: Tensor
    """(P,) how far ahead: prediction p knew the steps up to steps[p] - horizons[p]."""
    clip_weights: Tensor | None = None
    """(B,) what distances of a clip are multiplied with, for prediction and copy alike."""


@dataclass(frozen=True)
class PredictionLoss:
    """The loss of a batch, whom to blame for it, and what to log."""

    loss: Tensor
    """Scalar with gradient: the weighted mean over horizons of the mean distance there; zero if nothing counts."""
    per_clip: Tensor
    """(B,) detached: the mean over each clip's predictions that count; zero if none does."""
    metrics: dict[str, Tensor]
    """Detached scalars, left on the device: `loss/prediction`, and `loss/copy_last` of the same predictions."""


def counted_splits(seen_until: Sequence[int], *, allow_leak: bool) -> list[int]:
    """The splits that training may learn from. Raises LeakError where none is legal and `allow_leak` is False."""
    if allow_leak:
        return list(range(1, len(seen_until)))
    legal = legal_splits(seen_until)
    if not legal:
        check_split(seen_until, 1)
    return legal


def check_objective(objective: Objective, predictor: Predictor) -> None:
    """Raises ConfigError unless `predictor` can learn from `objective`."""
    if isinstance(predictor, FlowMatchingPredictor) and (objective.distance, objective.targets) != ("l2", "raw"):
        raise ConfigError(
            f'predictor.kind: flow_matching learns velocities, whose mean only "l2" on "raw" targets finds; training.'
            f'loss is "{objective.distance}" and training.targets "{objective.targets}": set training.loss=l2 and '
            "training.targets=raw"
        )


def forecast(predictor: Predictor, batch: LatentBatch, splits: Sequence[int], rollout_steps: int) -> list[Forecast]:
    """What `predictor` learns from in `batch`: predictions made from the steps before one of the legal `splits`."""
    if isinstance(predictor, CausalPredictor):
        return _forced_and_rolled(predictor, batch, splits, rollout_steps)
    split = _draw(splits)
    context, target = (batch.latents[:, :split], batch.times[:, :split]), batch.times[:, split:]
    weights = None
    if isinstance(predictor, FlowMatchingPredictor):
        prediction, weights = predictor.noisy_ends(*context, batch.targets[:, split:].detach(), target)
    else:
        prediction = predictor(*context, target)
    return [_from_split(prediction, split, weights)]


def prediction_loss(
    forecasts: Sequence[Forecast], batch: LatentBatch, splits: Sequence[int], objective: Objective
) -> PredictionLoss:
    """Score `forecasts` of `batch`. Gradients reach the predictions, never the targets.

    A prediction counts if the steps it was made from end at one of `splits`, and its step is not padding.
    """
    scored = [_score(part, batch, splits, objective) for part in forecasts]
    distance, copied, counts = (torch.cat(parts, dim=1) for parts in zip(*scored, strict=True))  # (B, P)
    horizons = torch.cat([part.horizons for part in forecasts])
    weights = _weights(horizons, counts, objective.horizon_weights)
    loss = (distance * weights).sum()
    per_clip = ((distance * counts).sum(1) / counts.sum(1).clamp(min=1)).detach()
    metrics = {"loss/prediction": loss.detach(), "loss/copy_last": (copied * weights).sum()}
    return PredictionLoss(loss, per_clip, metrics)


def check_finite(loss: Tensor, per_clip: Tensor, ids: Sequence[str]) -> None:
    """Raises TrainingError naming the clips if `loss` is not finite. `per_clip` (B,) belongs to `ids`. Synchronises."""
    if torch.isfinite(loss):
        return
    blamed = [clip for clip, finite in zip(ids, torch.isfinite(per_clip).tolist(), strict=True) if not finite]
    raise TrainingError(
        f"the loss is {loss.item()}: not finite for clips {', '.join(blamed or ids)}; look at them with "
        '"flcache verify", or lower "training.learning_rate" or "training.clip_norm" if they are sound'
    )


def _forced_and_rolled(
    predictor: CausalPredictor, batch: LatentBatch, splits: Sequence[int], rollout_steps: int
) -> list[Forecast]:
    """Every next step from the truth, and what follows a random prefix from the predictions before it."""
    steps = batch.latents.shape[1]
    if rollout_steps == 1:
        forced = predictor(batch.latents[:, :-1], batch.times[:, :-1], batch.times[:, 1:])
        return [_next_steps(forced)]
    roomy = [split for split in splits if split + rollout_steps <= steps]
    split = _draw(roomy or splits)
    count = min(rollout_steps, steps - split)
    forced, rolled = predictor.force_and_roll_out(batch.latents, batch.times, split, count)
    whole = _from_split(rolled, split, None)  # its first step is one of the forced ones
    return [_next_steps(forced), Forecast(rolled[:, 1:], whole.steps[1:], whole.horizons[1:])]


def _draw(splits: Sequence[int]) -> int:
    return splits[int(torch.randint(len(splits), ()))]


def _next_steps(forced: Tensor) -> Forecast:
    """(B, T - 1, H, W, D) of the steps 1 to T - 1, each made from the steps before it."""
    steps = torch.arange(1, forced.shape[1] + 1, device=forced.device)
    return Forecast(forced, steps, torch.ones_like(steps))


def _from_split(prediction: Tensor, split: int, clip_weights: Tensor | None) -> Forecast:
    """(B, P, H, W, D) of the steps from `split` on, made from the steps before it."""
    horizons = torch.arange(1, prediction.shape[1] + 1, device=prediction.device)
    return Forecast(prediction, horizons + split - 1, horizons, clip_weights)


def _score(
    part: Forecast, batch: LatentBatch, splits: Sequence[int], objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Distance of the prediction and of copying, and whether they count, each (B, P)."""
    targets = batch.targets[:, part.steps].detach()
    origins = part.steps - part.horizons  # the last step that each prediction knew
    with torch.no_grad():
        copied = _distance(batch.latents[:, origins], targets, objective)
    distance = _distance(part.prediction, targets, objective)
    if part.clip_weights is not None:
        distance, copied = distance * part.clip_weights[:, None], copied * part.clip_weights[:, None]
    legal = torch.isin(origins + 1, torch.tensor(splits, device=origins.device))
    return distance, copied, batch.valid[:, part.steps] & legal


def _distance(prediction: Tensor, targets: Tensor, objective: Objective) -> Tensor:
    """(B, P) mean over H and W of the distance of tokens, in float32."""
    prediction, targets = prediction.float(), targets.float()
    if objective.targets == "layer_norm":
        prediction, targets = (functional.layer_norm(tokens, tokens.shape[-1:]) for tokens in (prediction, targets))
    return DISTANCES[objective.distance](prediction, targets).mean(dim=(2, 3))


def _weights(horizons: Tensor, counts: Tensor, horizon_weights: Sequence[float]) -> Tensor:
    """(B, P) summing to 1: each horizon's weight over the predictions (B, P) of it that count; 0 where none does."""
    given = torch.tensor(horizon_weights, device=horizons.device)
    same = (horizons[:, None] == horizons).float()  # (P, P)
    counted = counts.sum(0).float() @ same  # (P,) predictions of that horizon that count
    weights = counts * (given[(horizons - 1).clamp(max=len(given) - 1)] / counted.clamp(min=1))
    return weights / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
