"""Predictions without training, as functions with the signature of a predictor.

Three need the context alone. Two are fitted in closed form in one pass over training clips: the mean of every position
of the grid, and ridge regression on the last steps. All get the context as the targets' encoder makes it
(`true_context`): where the encoder trains, that of the predictor is encoded by other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.errors import DataError
from flcache.evaluation.processes import ALONE, Processes, add_exactly
from flcache.evaluation.ridge import RidgeMoments
from flcache.leak import check_boundary, legal_boundaries

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""context (B, Tc, H, W, D), context_times (B, Tc), target_times (B, Tt), in seconds -> (B, Tt, H, W, D)."""


def true_context(batch: LatentBatch) -> Tensor:
    """The context (B, Tc, H, W, D) as the targets' encoder makes it: `batch.context` unless the encoder trains."""
    return batch.targets[:, : batch.context_steps]


def given(batch: LatentBatch, horizons: int | None, *, actions: bool) -> tuple[Tensor, ...]:
    """What a predictor gets of `batch` to predict `horizons` steps (None: all): the context and its times, the times of
    the targets and, with `actions`, those of all these steps."""
    times = batch.target_times[:, :horizons]
    conditions = (batch.arrays["actions"][:, : batch.context_steps + times.shape[1]],) if actions else ()
    return batch.context, batch.context_times, times, *conditions


def copy_last(context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
    """The last step of the context, at every horizon."""
    return context[:, -1:].expand(-1, target_times.shape[1], -1, -1, -1)


def mean_of_context(context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
    """The mean over the steps of the context, at every horizon."""
    return context.mean(dim=1, keepdim=True).expand(-1, target_times.shape[1], -1, -1, -1)


def linear_extrapolation(context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
    """The straight line through the last two steps of the context, continued in time.

    A copy of the last step where the context has one step alone, or where both have the same time, as in a video with
    fewer frames per second than the clip.
    """
    last = context[:, -1:]
    if context.shape[1] == 1:
        return copy_last(context, context_times, target_times)
    elapsed = target_times - context_times[:, -1:]  # (B, Tt)
    lag = context_times[:, -1:] - context_times[:, -2:-1]
    lags = torch.where(lag > 0, elapsed / torch.where(lag > 0, lag, 1.0), 0.0)
    return last + (last - context[:, -2:-1]) * lags[:, :, None, None, None]


BASELINES: Mapping[str, Predict] = {
    "copy_last": copy_last,
    "mean_of_context": mean_of_context,
    "linear": linear_extrapolation,
}
"""Those that need the context alone, by their names in evaluation.json."""


@dataclass(frozen=True)
class DatasetMean:
    """The mean of each position of the grid over the training clips, for every clip and horizon."""

    mean: Tensor
    """(H, W, D) float32"""

    def __call__(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        return self.mean.to(context.device).expand(*target_times.shape, -1, -1, -1)


def fit_baselines(
    batches: Iterable[LatentBatch],
    *,
    seen_until: Sequence[int],
    ridge_steps: int,
    horizons: int | None = None,
    allow_leak: bool = False,
    processes: Processes = ALONE,
) -> dict[str, Predict]:
    """`BASELINES`, and those that are fitted to `batches` of standardised training clips in one pass.

    The ridge takes `ridge_steps` past steps, or as many as the context has, predicts `horizons` steps (None: to the end
    of the clips), and learns from boundaries that are legal by `seen_until`, or from all with `allow_leak`. With
    several `processes` each has every `count`th batch. Raises DataError without a clip, LeakError if no boundary is
    legal.
    """
    boundaries = range(1, len(seen_until)) if allow_leak else legal_boundaries(seen_until)
    mean, moments = _PositionMean(), None
    for number, batch in enumerate(batches):
        if moments is None:
            check_boundary(seen_until, batch.context_steps, allow_leak=allow_leak)
            ahead = batch.target_times[:, :horizons].shape[1]
            moments = RidgeMoments(min(ridge_steps, batch.context_steps), ahead)
        mean.add(batch)
        moments.add(batch, boundaries, number * processes.count + processes.rank)
    mean.sums = processes.add_up(mean.sums)
    sums = processes.add_up(moments.sums() if moments else {})

    def fit() -> dict[str, Predict]:
        if moments is None:
            raise DataError('no training clips to fit baselines to: "dataset.train" has no encoded clips')
        moments.put(sums)
        return {"dataset_mean": mean.finish(), "ridge": moments.fit()}

    return {**BASELINES, **processes.share(fit)}


class _PositionMean:
    """Running sum over the valid steps of the targets."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        """Additive over processes."""

    def add(self, batch: LatentBatch) -> None:
        valid = batch.valid.to(batch.targets.device)
        total = torch.einsum("bt,bthwd->hwd", valid.to(batch.targets.dtype), batch.targets)
        for name, value in (("steps", valid.sum()[None]), ("latents", total)):
            add_exactly(self.sums.setdefault(name, torch.zeros(value.shape, dtype=torch.float64)), value)

    def finish(self) -> DatasetMean:
        if not self.sums or not self.sums["steps"]:
            raise DataError("no training clip has a step that is not padding, so there is no mean to take")
        return DatasetMean((self.sums["latents"] / self.sums["steps"]).float())
