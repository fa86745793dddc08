"""Roll a predictor out over a split and compare it with every baseline, horizon by horizon.

Shapes: B clips, Tc context steps, K horizons, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.errors import DataError
from flcache.evaluation.baselines import BASELINES, Predict, copy_last, given, true_context
from flcache.evaluation.bootstrap import number_videos
from flcache.evaluation.metrics import (
    ChannelVariance,
    join,
    mean_over_clips,
    mean_square,
    noise_level,
    score,
    skill,
)
from flcache.evaluation.processes import ALONE, Processes
from flcache.evaluation.result import SHUFFLED, EvaluationResult
from flcache.evaluation.retrieval import Gallery
from flcache.evaluation.sampling import Sampling, score_samples
from flcache.evaluation.spread import SpreadMoments
from flcache.evaluation.summary import ClipScores, relative, summarise
from flcache.leak import check_boundary

Prediction = Callable[..., Tensor]
"""A `Predict`, which gets actions too where the predictor is conditioned on them."""


@torch.no_grad()
def evaluate(
    predict: Prediction,
    batches: Iterable[LatentBatch],
    *,
    seen_until: Sequence[int],
    fingerprint: str,
    allow_leak: bool = False,
    horizons: int | None = None,
    baselines: Mapping[str, Predict] = BASELINES,
    sampling: Sampling | None = None,
    actions: bool = False,
    video_of: Mapping[str, str] | None = None,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
) -> EvaluationResult:
    """Score `predict` on the targets of `batches`, up to `horizons` steps ahead (None: to the end of the clips).

    All batches have the same steps and boundary. `sampling` replaces `predict` for a generative predictor: several
    futures of every context are drawn, for the first clips alone. With `actions` the prediction is made from those of
    the batch, and once more from those of other clips, which counts as the baseline `shuffled_actions`. `video_of` is
    as in `number_videos`. Baselines get `true_context`, and no actions; where the encoder trains, errors are divided by
    the targets' variance. Memory is a batch, a few numbers per clip, and what `retrieval` and `spread` keep of the
    first clips. With several `processes` each has every `count`th batch, and the main one gets the result; that of the
    others has no horizons. Raises LeakError if by `seen_until` the contexts have seen the future and `allow_leak` is
    False; DataError if there are no batches.
    """
    found = _Found(horizons, actions)
    leak = False
    for first, batch in _in_turn(batches, processes, sampling.max_clips if sampling else None):
        leak |= check_boundary(seen_until, batch.context_steps, allow_leak=allow_leak)
        found.add(first, batch.to(device), predict, baselines, sampling)
    found.gather(processes)
    if not processes.main:
        return EvaluationResult((), leak, fingerprint)
    if not found.parts:
        raise DataError('no clips to evaluate: "evaluation.split" names a split without encoded clips')
    retrieval = {name: gallery.finish() for name, gallery in found.galleries.items()}
    variance = found.variance.value() if found.variance.sums else None
    scores = relative(join([part.scores for part in found.parts]), variance or 1.0)
    videos = number_videos([clip_id for part in found.parts for clip_id in part.ids], video_of)
    num_samples = sampling.num_samples if sampling else 0
    horizon_results = summarise(scores, videos, num_samples, retrieval, found.spread.finish())
    return EvaluationResult(horizon_results, leak, fingerprint, variance)


@torch.no_grad()
def skill_by_horizon(
    predict: Prediction,
    batches: Iterable[LatentBatch],
    *,
    horizons: int | None = None,
    baselines: Mapping[str, Predict] = BASELINES,
    sampling: Sampling | None = None,
    actions: bool = False,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
) -> dict[str, dict[int, float]]:
    """The skills that `evaluate` finds, over each baseline at each horizon that has clips, on every process.

    Nothing else is computed: this is for validation while training. Raises DataError if there are no batches.
    """
    own = []
    for first, batch in _in_turn(batches, processes, sampling.max_clips if sampling else None):
        own.append((first, _errors(batch.to(device), horizons, predict, baselines, sampling, actions)))
    gathered = [part for theirs in processes.gather(own) for part in theirs]

    def compare() -> dict[str, dict[int, float]]:
        if not gathered:
            raise DataError("no clips to validate on: mend the val split, or set training.validate_every=null")
        found = join([errors for _, errors in sorted(gathered, key=lambda part: part[0])])
        valid = found.pop("valid")
        means = {name: mean_over_clips(errors, valid) for name, errors in found.items()}
        prediction, noise = means["prediction"], noise_level(means["power"])
        skills = {name: skill(prediction, means[name], noise).tolist() for name in baselines}
        counted = [horizon for horizon, count in enumerate(valid.sum(0).tolist(), start=1) if count]
        return {name: {horizon: values[horizon - 1] for horizon in counted} for name, values in skills.items()}

    return processes.share(compare)


def _errors(
    batch: LatentBatch,
    horizons: int | None,
    predict: Prediction,
    baselines: Mapping[str, Predict],
    sampling: Sampling | None,
    actions: bool,
) -> dict[str, Tensor]:
    """(B, K) of the prediction and of each baseline; the targets' `power`, and which steps are `valid`."""
    target, times = batch.target[:, :horizons], batch.target_times[:, :horizons]
    if sampling is None:
        error = mean_square(predict(*given(batch, horizons, actions=actions)).float() - target.float())
    else:
        error = score_samples(sampling.samples(batch.context, batch.context_times, times, batch.ids), target).expected
    true_given = true_context(batch), batch.context_times, times
    others = {name: mean_square(baseline(*true_given) - target) for name, baseline in baselines.items()}
    valid = batch.target_valid[:, :horizons].cpu()
    return {**others, "prediction": error, "power": mean_square(target), "valid": valid}


def _in_turn(
    batches: Iterable[LatentBatch], processes: Processes, most: int | None
) -> Iterator[tuple[int, LatentBatch]]:
    """The batches of this process, each with the number of its first clip among those of all, up to `most` clips."""
    stream, done = iter(batches), 0
    while most is None or done < most:
        batch = next(stream, None)
        sizes = processes.everyones(len(batch) if batch else 0)
        if not any(sizes):
            return
        first = done + sum(sizes[: processes.rank])
        done += sum(sizes)
        if batch is not None and (most is None or first < most):
            yield first, batch if most is None else _first(batch, most - first)


def _first(batch: LatentBatch, clips: int) -> LatentBatch:
    latents = batch.latents[:clips]
    targets = latents if batch.targets is batch.latents else batch.targets[:clips]
    times, valid, ids = batch.times[:clips], batch.valid[:clips], batch.ids[:clips]
    arrays = {name: array[:clips] for name, array in batch.arrays.items()}
    return replace(batch, latents=latents, targets=targets, times=times, valid=valid, ids=ids, arrays=arrays)


def _shuffled(batch: LatentBatch) -> LatentBatch:
    """Each clip with the actions of the one before it in the batch; a single clip with its own in reverse."""
    actions = batch.arrays["actions"]
    others = actions.roll(1, dims=0) if len(batch) > 1 else actions.flip(1)
    return replace(batch, arrays={**batch.arrays, "actions": others})


@dataclass(frozen=True)
class _Part:
    first: int
    """Number of its first clip."""
    ids: tuple[str, ...]
    scores: ClipScores


@dataclass
class _Found:
    horizons: int | None
    actions: bool
    parts: list[_Part] = field(default_factory=list)
    galleries: dict[str, Gallery] = field(default_factory=lambda: {"prediction": Gallery(), "copy_last": Gallery()})
    spread: SpreadMoments = field(default_factory=SpreadMoments)
    variance: ChannelVariance = field(default_factory=ChannelVariance)

    def add(
        self,
        first: int,
        batch: LatentBatch,
        predict: Prediction,
        baselines: Mapping[str, Predict],
        sampling: Sampling | None,
    ) -> None:
        ahead = slice(self.horizons)
        target, target_times = batch.target[:, ahead], batch.target_times[:, ahead]
        valid = batch.target_valid[:, ahead]
        samples = None
        if sampling is None:
            prediction = example = predict(*given(batch, self.horizons, actions=self.actions))
            scores = score(prediction, target)
        else:
            drawn = sampling.samples(batch.context, batch.context_times, target_times, batch.ids)
            prediction, example, samples = drawn.float().mean(0), drawn[0], score_samples(drawn, target)
            scores = replace(score(prediction, target), error=samples.expected)
        true_given = true_context(batch), batch.context_times, target_times
        copied = copy_last(*true_given)
        others = {name: score(baseline(*true_given), target) for name, baseline in baselines.items()}
        if self.actions:
            others[SHUFFLED] = score(predict(*given(_shuffled(batch), self.horizons, actions=True)), target)
        clip_scores = ClipScores(
            prediction=scores,
            samples=samples,
            baselines=others,
            power=mean_square(target),
            motion=mean_square(target - copied),
            seconds=(target_times - batch.context_times[:, -1:]).cpu().double(),
            valid=valid.cpu(),
        )
        self.parts.append(_Part(first, batch.ids, clip_scores))
        self.galleries["prediction"].add(prediction, target, valid, first)
        self.galleries["copy_last"].add(copied, target, valid, first)
        self.spread.add(example, target, valid, first)
        if batch.targets is not batch.latents:  # the encoder trains
            self.variance.add(target[valid])

    def gather(self, processes: Processes) -> None:
        """Collect on the main process what all have found, in the order of the batches."""
        parts = [part for theirs in processes.gather(self.parts) for part in theirs]
        self.parts = sorted(parts, key=lambda part: part.first)
        for name, gallery in self.galleries.items():
            self.galleries[name] = Gallery.join(processes.gather(gallery))
        self.spread.put(processes.add_up(self.spread.sums()))
        self.variance.sums = processes.add_up(self.variance.sums)
