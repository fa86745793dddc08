"""Roll a predictor out over a split and compare it with every baseline, horizon by horizon.

Shapes: B clips, Tc context steps, K horizons, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.errors import DataError
from flcache.evaluation.baselines import BASELINES, Predict
from flcache.evaluation.metrics import Scores, join, mean_over_clips, power, score, skill
from flcache.evaluation.result import Errors, EvaluationResult, HorizonResult
from flcache.leak import check_split


@dataclass(frozen=True)
class _Clips:
    """What is gathered, batch by batch; tensors are (B, K) on the CPU."""

    predictions: list[Scores] = field(default_factory=list)
    baselines: dict[str, list[Scores]] = field(default_factory=dict)
    powers: list[Tensor] = field(default_factory=list)
    seconds: list[Tensor] = field(default_factory=list)
    valid: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def evaluate(
    predict: Predict,
    batches: Iterable[LatentBatch],
    *,
    seen_until: Sequence[int],
    fingerprint: str,
    allow_leak: bool = False,
    horizons: int | None = None,
    baselines: Mapping[str, Predict] = BASELINES,
    device: torch.device | str = "cpu",
) -> EvaluationResult:
    """Score `predict` on the targets of `batches`, up to `horizons` steps ahead (None: as far as the clips go).

    All batches have the same steps and split. Raises LeakError if the contexts have seen the future, which `seen_until`
    tells, and `allow_leak` is False; DataError if there are no batches.
    """
    clips = _Clips(baselines={name: [] for name in baselines})
    leak = False
    for batch in batches:
        leak |= check_split(seen_until, batch.context_steps, allow_leak=allow_leak)
        _score_batch(predict, baselines, batch.to(device), horizons, clips)
    if not clips.valid:
        raise DataError('no clips to evaluate: "evaluation.split" names a split without encoded clips')
    return EvaluationResult(_summarise(clips), leak, fingerprint)


def _score_batch(
    predict: Predict, baselines: Mapping[str, Predict], batch: LatentBatch, horizons: int | None, clips: _Clips
) -> None:
    context, context_times = batch.context, batch.context_times
    target, target_times = batch.target[:, :horizons], batch.target_times[:, :horizons]
    clips.predictions.append(score(predict(context, context_times, target_times), target))
    for name, baseline in baselines.items():
        clips.baselines[name].append(score(baseline(context, context_times, target_times), target))
    clips.powers.append(power(target))
    clips.seconds.append((target_times - context_times[:, -1:]).cpu().double())
    clips.valid.append(batch.target_valid[:, :horizons].cpu())


def _summarise(clips: _Clips) -> tuple[HorizonResult, ...]:
    valid = torch.cat(clips.valid)
    target_power = mean_over_clips(torch.cat(clips.powers), valid)
    seconds = mean_over_clips(torch.cat(clips.seconds), valid).tolist()
    prediction = _means(clips.predictions, valid)
    baselines = {name: _means(scores, valid) for name, scores in clips.baselines.items()}
    skills = {name: skill(prediction.error, means.error, target_power) for name, means in baselines.items()}
    return tuple(
        HorizonResult(
            horizon=index + 1,
            seconds=seconds[index],
            clips=count,
            prediction=_at(prediction, index),
            baselines={name: _at(means, index) for name, means in baselines.items()},
            skill={name: values[index].item() for name, values in skills.items()},
        )
        for index, count in enumerate(valid.sum(0).tolist())
    )


def _means(scores: Sequence[Scores], valid: Tensor) -> Scores:
    """The means over all valid clips, each (K,)."""
    clips = join(scores)
    return Scores(*(mean_over_clips(values, valid) for values in (clips.error, clips.l1, clips.cosine)))


def _at(means: Scores, index: int) -> Errors:
    return Errors(means.error[index].item(), means.l1[index].item(), means.cosine[index].item())
