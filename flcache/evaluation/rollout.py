"""Roll a predictor out over a split and compare it with every baseline, horizon by horizon.

Shapes: B clips, Tc context steps, K horizons, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.errors import DataError
from flcache.evaluation.baselines import BASELINES, Predict, copy_last, true_context
from flcache.evaluation.bootstrap import number_videos
from flcache.evaluation.metrics import ChannelVariance, Scores, join, mean_square, score
from flcache.evaluation.processes import ALONE, Processes
from flcache.evaluation.result import EvaluationResult
from flcache.evaluation.retrieval import Gallery
from flcache.evaluation.sampling import SampleScores, Sampling, join_samples, score_samples
from flcache.evaluation.spread import SpreadMoments
from flcache.evaluation.summary import ClipScores, relative, summarise
from flcache.leak import check_boundary


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
    sampling: Sampling | None = None,
    video_of: Mapping[str, str] | None = None,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
) -> EvaluationResult:
    """Score `predict` on the targets of `batches`, up to `horizons` steps ahead (None: as far as the clips go).

    All batches have the same steps and boundary. `sampling` takes the place of `predict` for a generative predictor: it
    is asked for several futures of every context, of its first clips alone. `video_of` says which video a clip is of,
    as `number_videos` takes it. Baselines see the context that the targets' encoder makes; where that is not the
    context's (the encoder trains), errors are relative to the targets' variance. Memory is a batch, a few numbers
    a clip, and what `retrieval` and `spread` keep of the first clips. Of several `processes` each has every `count`th
    batch, and the main one gets the result; that of the others has no horizons. Raises LeakError if the contexts have
    seen the future, which `seen_until` tells, and `allow_leak` is False; DataError if there are no batches.
    """
    found = _Found(horizons)
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
    scores = found.clip_scores(sampling, video_of)
    horizon_results = summarise(relative(scores, variance or 1.0), retrieval, found.spread.finish())
    return EvaluationResult(horizon_results, leak, fingerprint, variance)


def _in_turn(
    batches: Iterable[LatentBatch], processes: Processes, most: int | None
) -> Iterator[tuple[int, LatentBatch]]:
    """The batches of this process, each with the number of its first clip among all clips, which are `most` at most."""
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
    """The first `clips` of a batch."""
    latents = batch.latents[:clips]
    targets = latents if batch.targets is batch.latents else batch.targets[:clips]
    times, valid, ids = batch.times[:clips], batch.valid[:clips], batch.ids[:clips]
    return replace(batch, latents=latents, targets=targets, times=times, valid=valid, ids=ids)


@dataclass(frozen=True)
class _Part:
    """Of one batch; tensors are (B, K) on the CPU."""

    first: int
    """Number of its first clip."""
    ids: tuple[str, ...]
    prediction: Scores
    samples: SampleScores | None
    baselines: Mapping[str, Scores]
    power: Tensor
    motion: Tensor
    seconds: Tensor
    valid: Tensor


@dataclass
class _Found:
    """What is gathered, batch by batch."""

    horizons: int | None
    parts: list[_Part] = field(default_factory=list)
    galleries: dict[str, Gallery] = field(default_factory=lambda: {"prediction": Gallery(), "copy_last": Gallery()})
    spread: SpreadMoments = field(default_factory=SpreadMoments)
    variance: ChannelVariance = field(default_factory=ChannelVariance)

    def add(
        self,
        first: int,
        batch: LatentBatch,
        predict: Predict,
        baselines: Mapping[str, Predict],
        sampling: Sampling | None,
    ) -> None:
        target, target_times = self._ahead(batch.target), self._ahead(batch.target_times)
        valid = self._ahead(batch.target_valid)
        given = batch.context, batch.context_times, target_times
        samples = None
        if sampling is None:
            prediction = example = predict(*given)
            scores = score(prediction, target)
        else:
            drawn = sampling.samples(*given, batch.ids)
            prediction, example, samples = drawn.float().mean(0), drawn[0], score_samples(drawn, target)
            scores = replace(score(prediction, target), error=samples.expected)
        true_given = true_context(batch), batch.context_times, target_times
        copied = copy_last(*true_given)
        part = _Part(
            first=first,
            ids=batch.ids,
            prediction=scores,
            samples=samples,
            baselines={name: score(baseline(*true_given), target) for name, baseline in baselines.items()},
            power=mean_square(target),
            motion=mean_square(target - copied),
            seconds=(target_times - batch.context_times[:, -1:]).cpu().double(),
            valid=valid.cpu(),
        )
        self.parts.append(part)
        self.galleries["prediction"].add(prediction, target, valid, first)
        self.galleries["copy_last"].add(copied, target, valid, first)
        self.spread.add(example, target, valid, first)
        if batch.targets is not batch.latents:  # the encoder trains
            self.variance.add(target[valid])

    def gather(self, processes: Processes) -> None:
        """On the main process, what all have found, in the order of the batches."""
        parts = [part for theirs in processes.gather(self.parts) for part in theirs]
        self.parts = sorted(parts, key=lambda part: part.first)
        for name, gallery in self.galleries.items():
            self.galleries[name] = Gallery.join(processes.gather(gallery))
        self.spread.put(processes.add_up(self.spread.sums()))
        self.variance.sums = processes.add_up(self.variance.sums)

    def clip_scores(self, sampling: Sampling | None, video_of: Mapping[str, str] | None) -> ClipScores:
        """All batches as one."""
        return ClipScores(
            prediction=join([part.prediction for part in self.parts]),
            baselines={name: join([part.baselines[name] for part in self.parts]) for name in self.parts[0].baselines},
            power=torch.cat([part.power for part in self.parts]),
            motion=torch.cat([part.motion for part in self.parts]),
            seconds=torch.cat([part.seconds for part in self.parts]),
            valid=torch.cat([part.valid for part in self.parts]),
            videos=number_videos([clip_id for part in self.parts for clip_id in part.ids], video_of),
            samples=join_samples([part.samples for part in self.parts if part.samples]) if sampling else None,
            num_samples=sampling.num_samples if sampling else 0,
        )

    def _ahead(self, steps: Tensor) -> Tensor:
        """The steps within the horizons, of targets (B, Tt, ...)."""
        return steps[:, : self.horizons]
