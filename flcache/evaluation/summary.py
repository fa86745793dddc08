"""From what was gathered clip by clip to an evaluation's horizons: means, skills, intervals, quartiles of motion.

Shapes: N clips, K horizons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flcache.evaluation.bootstrap import Interval, ratio_intervals
from flcache.evaluation.metrics import NOISE, Scores, mean_over_clips, skill
from flcache.evaluation.result import Errors, HorizonResult, MotionQuartile, SampleErrors
from flcache.evaluation.retrieval import Retrieval
from flcache.evaluation.sampling import SampleScores
from flcache.evaluation.spread import Spread

QUARTILES = 4
REFERENCE = "copy_last"


@dataclass(frozen=True)
class ClipScores:
    """Everything known of each clip and horizon; tensors are (N, K) on the CPU."""

    prediction: Scores
    baselines: Mapping[str, Scores]
    power: Tensor
    """Mean square of the truth."""
    motion: Tensor
    """Mean squared difference between the truth and the last step of the context."""
    seconds: Tensor
    valid: Tensor
    samples: SampleScores | None
    num_samples: int


def summarise(
    clips: ClipScores, retrieval: Mapping[str, Sequence[Retrieval]], spread: Sequence[Spread]
) -> tuple[HorizonResult, ...]:
    """One result a horizon."""
    counts = clips.valid.sum(0).tolist()
    seconds = mean_over_clips(clips.seconds, clips.valid).tolist()
    means = {name: _means(scores, clips.valid) for name, scores in _methods(clips).items()}
    skills = {name: _skill(clips, clips.prediction, scores) for name, scores in clips.baselines.items()}
    reference = clips.baselines.get(REFERENCE)
    own = {name: _skill(clips, scores, reference) for name, scores in clips.baselines.items()} if reference else {}
    intervals = _Intervals(clips)
    quartiles, samples = _quartiles(clips), _samples(clips)
    return tuple(
        HorizonResult(
            horizon=k + 1,
            seconds=seconds[k],
            clips=count,
            prediction=_at(means["prediction"], k),
            baselines={name: _at(means[name], k) for name in clips.baselines},
            skill={name: values[k].item() for name, values in skills.items()},
            error_interval=intervals.error("prediction", k),
            skill_interval={name: intervals.skill("prediction", name, k) for name in clips.baselines},
            baseline_error_interval={name: intervals.error(name, k) for name in clips.baselines},
            baseline_skill={name: values[k].item() for name, values in own.items()},
            baseline_skill_interval={name: intervals.skill(name, REFERENCE, k) for name in own},
            quartiles=quartiles[k],
            retrieval={name: found[k] for name, found in retrieval.items()},
            spread=spread[k],
            samples=samples[k],
        )
        for k, count in enumerate(counts)
    )


class _Intervals:
    """All intervals of an evaluation, from one set of resamples."""

    def __init__(self, clips: ClipScores) -> None:
        self._horizons = clips.valid.shape[1]
        methods, ones = _methods(clips), clips.valid.double()
        floored = {name: _floor(scores.error, clips) for name, scores in methods.items()}
        pairs = {name: (torch.where(clips.valid, scores.error, 0.0), ones) for name, scores in methods.items()}
        comparisons = [("prediction", name) for name in clips.baselines]
        if REFERENCE in clips.baselines:
            comparisons += [(name, REFERENCE) for name in clips.baselines]
        ratios = [(floored[method], floored[baseline]) for method, baseline in comparisons]
        columns = [*pairs.values(), *ratios]
        numerators, denominators = (torch.cat(side, dim=1) for side in zip(*columns, strict=True))
        found = ratio_intervals(numerators, denominators)
        self._found = dict(zip([*pairs, *comparisons], _chunks(found, self._horizons), strict=True))

    def error(self, method: str, k: int) -> Interval:
        return self._found[method][k]

    def skill(self, method: str, baseline: str, k: int) -> Interval:
        ratio = self._found[method, baseline][k]
        return Interval(1 - ratio.high, 1 - ratio.low)


def _methods(clips: ClipScores) -> dict[str, Scores]:
    return {"prediction": clips.prediction, **clips.baselines}


def _floor(error: Tensor, clips: ClipScores) -> Tensor:
    """Errors (N, K), zero where a clip does not count; a horizon whose mean is noise has noise everywhere, so that two
    such errors have the ratio 1 in every resample, as `metrics.skill` has it."""
    noise = _noise(clips)
    mean = mean_over_clips(error, clips.valid)
    return torch.where(clips.valid, torch.where(mean > noise, error, noise.expand_as(error)), 0.0)


def _noise(clips: ClipScores) -> Tensor:
    """(K,) the mean squared error that counts as none."""
    tiny = torch.finfo(torch.float64).tiny
    return (NOISE * mean_over_clips(clips.power, clips.valid)).clamp(min=tiny)


def _skill(clips: ClipScores, scores: Scores, baseline: Scores) -> Tensor:
    """(K,)"""
    error, opponent, power = (
        mean_over_clips(values, clips.valid) for values in (scores.error, baseline.error, clips.power)
    )
    return skill(error, opponent, power)


def _quartiles(clips: ClipScores) -> list[tuple[MotionQuartile, ...]]:
    """For each horizon, its clips in four groups from the least to the most motion."""
    return [_quartiles_at(clips, k) for k in range(clips.valid.shape[1])]


def _quartiles_at(clips: ClipScores, k: int) -> tuple[MotionQuartile, ...]:
    present = clips.valid[:, k].nonzero()[:, 0]
    if len(present) < QUARTILES:
        return ()
    by_motion = present[clips.motion[present, k].argsort(stable=True)]
    return tuple(_quartile(clips, k, chosen) for chosen in by_motion.tensor_split(QUARTILES))


def _quartile(clips: ClipScores, k: int, chosen: Tensor) -> MotionQuartile:
    def mean(values: Tensor) -> Tensor:
        return values[chosen, k].mean()

    error, power = mean(clips.prediction.error), mean(clips.power)
    return MotionQuartile(
        motion=mean(clips.motion).item(),
        clips=len(chosen),
        error=error.item(),
        skill={name: skill(error, mean(scores.error), power).item() for name, scores in clips.baselines.items()},
    )


def _samples(clips: ClipScores) -> list[SampleErrors | None]:
    if clips.samples is None:
        return [None] * clips.valid.shape[1]
    scores = clips.samples
    means = [mean_over_clips(values, clips.valid).tolist() for values in (scores.best, scores.mean, scores.diversity)]
    return [SampleErrors(clips.num_samples, *at) for at in zip(*means, strict=True)]


def _means(scores: Scores, valid: Tensor) -> Scores:
    """The means over all valid clips, each (K,)."""
    return Scores(*(mean_over_clips(values, valid) for values in (scores.error, scores.l1, scores.cosine)))


def _at(means: Scores, k: int) -> Errors:
    return Errors(means.error[k].item(), means.l1[k].item(), means.cosine[k].item())


def _chunks(values: Sequence[Interval], size: int) -> list[Sequence[Interval]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
