"""From scores of clips to results per horizon: means, skills, intervals, quartiles of motion.

Shapes: N clips, K horizons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flcache.evaluation.bootstrap import Interval, ratio_intervals
from flcache.evaluation.metrics import Scores, mean_over_clips, noise_level, skill
from flcache.evaluation.result import REFERENCE, Errors, HorizonResult, MotionQuartile, SampleErrors
from flcache.evaluation.retrieval import Retrieval
from flcache.evaluation.sampling import SampleScores
from flcache.evaluation.spread import Spread

QUARTILES = 4

_Pair = tuple[str, str]
"""What has a skill, and the baseline it is over."""


@dataclass(frozen=True)
class ClipScores:
    """Scores of each clip and horizon; tensors are (N, K) on the CPU."""

    prediction: Scores
    baselines: Mapping[str, Scores]
    power: Tensor
    """Mean square of the truth."""
    motion: Tensor
    """Mean squared difference between the truth and the last step of the context."""
    seconds: Tensor
    valid: Tensor
    samples: SampleScores | None


def relative(clips: ClipScores, variance: float) -> ClipScores:
    """The scores of latents divided by the root of `variance`."""
    if variance == 1:
        return clips
    samples = clips.samples
    if samples is not None:
        squares = {name: value / variance for name, value in vars(samples).items() if name != "energy"}
        samples = SampleScores(**squares, energy=samples.energy / variance**0.5)
    return replace(
        clips,
        prediction=_scaled(clips.prediction, variance),
        baselines={name: _scaled(scores, variance) for name, scores in clips.baselines.items()},
        power=clips.power / variance,
        motion=clips.motion / variance,
        samples=samples,
    )


def _scaled(scores: Scores, variance: float) -> Scores:
    return Scores(scores.error / variance, scores.l1 / variance**0.5, scores.cosine)


def summarise(
    clips: ClipScores,
    videos: Tensor,
    num_samples: int,
    retrieval: Mapping[str, Sequence[Retrieval]],
    spread: Sequence[Spread],
) -> tuple[HorizonResult, ...]:
    """One result per horizon. `videos` (N,) has the same number for clips of the same video."""
    counts = clips.valid.sum(0).tolist()
    seconds = mean_over_clips(clips.seconds, clips.valid).tolist()
    errors = _errors(clips)
    means = {name: _means(scores, clips.valid) for name, scores in _methods(clips).items()}
    comparisons = _comparisons(clips)
    skills = {pair: _skill(compared, clips.valid).tolist() for pair, compared in comparisons.items()}
    error_intervals, skill_intervals = _intervals(clips.valid, videos, errors, comparisons)
    own = clips.baselines if REFERENCE in clips.baselines else {}
    return tuple(
        HorizonResult(
            horizon=k + 1,
            seconds=seconds[k],
            clips=count,
            prediction=means["prediction"][k],
            baselines={name: means[name][k] for name in clips.baselines},
            skill={name: skills["prediction", name][k] for name in clips.baselines},
            error_interval=error_intervals["prediction"][k],
            skill_interval={name: skill_intervals["prediction", name][k] for name in clips.baselines},
            baseline_error_interval={name: error_intervals[name][k] for name in clips.baselines},
            baseline_skill={name: skills[name, REFERENCE][k] for name in own},
            baseline_skill_interval={name: skill_intervals[name, REFERENCE][k] for name in own},
            quartiles=_quartiles(clips, k),
            retrieval={name: found[k] for name, found in retrieval.items()},
            spread=spread[k],
            samples=_samples(clips, num_samples, skills, skill_intervals, k),
        )
        for k, count in enumerate(counts)
    )


@dataclass(frozen=True)
class _Comparison:
    error: Tensor
    """(N, K)"""
    opponent: Tensor
    """(N, K)"""
    noise: Tensor
    """(K,) smaller mean errors count as this much."""


def _comparisons(clips: ClipScores) -> dict[_Pair, _Comparison]:
    """The pairs that a skill is reported of: the prediction over every baseline, and all others over copying."""
    errors, noise = _errors(clips), noise_level(mean_over_clips(clips.power, clips.valid))
    pairs = [("prediction", name) for name in clips.baselines]
    reference = errors.get(REFERENCE)
    if reference is not None:
        pairs += [(name, REFERENCE) for name in clips.baselines]
    found = {pair: _Comparison(errors[pair[0]], errors[pair[1]], noise) for pair in pairs}
    if clips.samples is not None:
        reference = torch.full_like(clips.power, torch.nan) if reference is None else reference
        found["single", REFERENCE] = _Comparison(clips.samples.single, reference, noise)
        # the energy score of equal samples is their distance to the truth
        found["energy", REFERENCE] = _Comparison(clips.samples.energy, reference.sqrt(), noise.sqrt())
    return found


def _intervals(
    valid: Tensor, videos: Tensor, errors: Mapping[str, Tensor], comparisons: Mapping[_Pair, _Comparison]
) -> tuple[dict[str, list[Interval]], dict[_Pair, list[Interval]]]:
    """The intervals of mean errors and of skills, one per horizon, from one set of resamples."""
    means = [(torch.where(valid, error, 0.0), valid.double()) for error in errors.values()]
    ratios = [
        tuple(_floor(side, compared.noise, valid) for side in (compared.error, compared.opponent))
        for compared in comparisons.values()
    ]
    numerators, denominators = (torch.cat(side, dim=1) for side in zip(*means, *ratios, strict=True))
    flat, size = ratio_intervals(numerators, denominators, videos), valid.shape[1]
    found = [flat[start : start + size] for start in range(0, len(flat), size)]
    skills = [[Interval(1 - ratio.high, 1 - ratio.low) for ratio in each] for each in found[len(errors) :]]
    return dict(zip(errors, found, strict=False)), dict(zip(comparisons, skills, strict=True))


def _methods(clips: ClipScores) -> dict[str, Scores]:
    return {"prediction": clips.prediction, **clips.baselines}


def _errors(clips: ClipScores) -> dict[str, Tensor]:
    """(N, K) by method."""
    return {name: scores.error for name, scores in _methods(clips).items()}


def _floor(error: Tensor, noise: Tensor, valid: Tensor) -> Tensor:
    """Errors (N, K), zero where a clip does not count. A horizon whose mean is at most `noise` has `noise` everywhere:
    two such errors have the ratio 1 in every resample, as in `metrics.skill`. Values that are not finite stay."""
    mean = mean_over_clips(error, valid)
    return torch.where(valid, torch.where(mean <= noise, noise.expand_as(error), error), 0.0)


def _skill(compared: _Comparison, valid: Tensor) -> Tensor:
    """(K,)"""
    error, opponent = (mean_over_clips(values, valid) for values in (compared.error, compared.opponent))
    return skill(error, opponent, compared.noise)


def _quartiles(clips: ClipScores, k: int) -> tuple[MotionQuartile, ...]:
    """The clips of horizon `k` in four groups from the least to the most motion."""
    present = clips.valid[:, k].nonzero()[:, 0]
    if len(present) < QUARTILES:
        return ()
    by_motion = present[clips.motion[present, k].argsort(stable=True)]
    return tuple(_quartile(clips, k, chosen) for chosen in by_motion.tensor_split(QUARTILES))


def _quartile(clips: ClipScores, k: int, chosen: Tensor) -> MotionQuartile:
    def mean(values: Tensor) -> Tensor:
        return values[chosen, k].mean()

    error, noise = mean(clips.prediction.error), noise_level(mean(clips.power))
    return MotionQuartile(
        motion=mean(clips.motion).item(),
        clips=len(chosen),
        error=error.item(),
        skill={name: skill(error, mean(scores.error), noise).item() for name, scores in clips.baselines.items()},
    )


def _samples(
    clips: ClipScores,
    num_samples: int,
    skills: Mapping[_Pair, Sequence[float]],
    intervals: Mapping[_Pair, Sequence[Interval]],
    k: int,
) -> SampleErrors | None:
    if clips.samples is None:
        return None
    means = {name: mean_over_clips(values, clips.valid)[k].item() for name, values in vars(clips.samples).items()}
    del means["expected"]  # the prediction's error
    return SampleErrors(
        num_samples,
        **means,
        single_skill=skills["single", REFERENCE][k],
        single_skill_interval=intervals["single", REFERENCE][k],
        energy_skill=skills["energy", REFERENCE][k],
        energy_skill_interval=intervals["energy", REFERENCE][k],
    )


def _means(scores: Scores, valid: Tensor) -> list[Errors]:
    """The means over all valid clips, one per horizon."""
    means = [mean_over_clips(values, valid).tolist() for values in (scores.error, scores.l1, scores.cosine)]
    return [Errors(*values) for values in zip(*means, strict=True)]
