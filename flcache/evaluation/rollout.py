"""Roll a predictor out over a split and compare it with every baseline, horizon by horizon.

Shapes: B clips, Tc context steps, K horizons, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.errors import DataError
from flcache.evaluation.baselines import BASELINES, Predict, copy_last, true_context
from flcache.evaluation.bootstrap import number_videos
from flcache.evaluation.metrics import ChannelVariance, Scores, join, mean_square, score
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
) -> EvaluationResult:
    """Score `predict` on the targets of `batches`, up to `horizons` steps ahead (None: as far as the clips go).

    All batches have the same steps and boundary. `sampling` takes the place of `predict` for a generative
    predictor: it is asked for several futures of every context, of its first clips alone. `video_of` says which
    video a clip is of, as `number_videos` takes it. Baselines see the context that the targets' encoder makes;
    where that is not the context's (the encoder trains), errors are relative to the targets' variance. Memory is a
    batch, a few numbers a clip, and what `retrieval` and `spread` keep of the first clips. Raises LeakError if the
    contexts have seen the future, which `seen_until` tells, and `allow_leak` is False; DataError if there are no
    batches.
    """
    found = _Found(horizons, {name: [] for name in baselines})
    leak = False
    for batch in batches:
        leak |= check_boundary(seen_until, batch.context_steps, allow_leak=allow_leak)
        if sampling is not None:
            batch = _first(batch, sampling.max_clips - len(found.ids))
        found.add(batch.to(device), predict, baselines, sampling)
        if sampling is not None and len(found.ids) >= sampling.max_clips:
            break
    if not found.valid:
        raise DataError('no clips to evaluate: "evaluation.split" names a split without encoded clips')
    retrieval = {name: gallery.finish() for name, gallery in found.galleries.items()}
    variance = found.variance.value() if found.trained_encoder else None
    scores = found.clip_scores(sampling, video_of)
    horizon_results = summarise(relative(scores, variance or 1.0), retrieval, found.spread.finish())
    return EvaluationResult(horizon_results, leak, fingerprint, variance)


def _first(batch: LatentBatch, clips: int) -> LatentBatch:
    """The first `clips` of a batch."""
    latents = batch.latents[:clips]
    targets = latents if batch.targets is batch.latents else batch.targets[:clips]
    times, valid, ids = batch.times[:clips], batch.valid[:clips], batch.ids[:clips]
    return replace(batch, latents=latents, targets=targets, times=times, valid=valid, ids=ids)


@dataclass
class _Found:
    """What is gathered, batch by batch; tensors are (B, K) on the CPU."""

    horizons: int | None
    baselines: dict[str, list[Scores]]
    predictions: list[Scores] = field(default_factory=list)
    samples: list[SampleScores] = field(default_factory=list)
    powers: list[Tensor] = field(default_factory=list)
    motions: list[Tensor] = field(default_factory=list)
    seconds: list[Tensor] = field(default_factory=list)
    valid: list[Tensor] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    galleries: dict[str, Gallery] = field(default_factory=lambda: {"prediction": Gallery(), "copy_last": Gallery()})
    spread: SpreadMoments = field(default_factory=SpreadMoments)
    trained_encoder: bool = False
    variance: ChannelVariance = field(default_factory=ChannelVariance)

    def add(
        self, batch: LatentBatch, predict: Predict, baselines: Mapping[str, Predict], sampling: Sampling | None
    ) -> None:
        target, target_times = self._ahead(batch.target), self._ahead(batch.target_times)
        valid = self._ahead(batch.target_valid)
        given = batch.context, batch.context_times, target_times
        if sampling is None:
            prediction = example = predict(*given)
            self.predictions.append(score(prediction, target))
        else:
            prediction, example = self._add_samples(sampling.draw(*given, sampling.num_samples), target)
        true_given = true_context(batch), batch.context_times, target_times
        copied = copy_last(*true_given)
        for name, baseline in baselines.items():
            self.baselines[name].append(score(baseline(*true_given), target))
        self.powers.append(mean_square(target))
        self.motions.append(mean_square(target - copied))
        self.seconds.append((target_times - batch.context_times[:, -1:]).cpu().double())
        self.valid.append(valid.cpu())
        self.ids += batch.ids
        self.galleries["prediction"].add(prediction, target, valid)
        self.galleries["copy_last"].add(copied, target, valid)
        self.spread.add(example, target, valid)
        if batch.targets is not batch.latents:
            self.trained_encoder = True
            self.variance.add(target[valid])

    def _add_samples(self, samples: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Score (S, B, K, H, W, D); returns their mean, and the first of them."""
        mean, found = samples.float().mean(0), score_samples(samples, target)
        self.samples.append(found)
        self.predictions.append(replace(score(mean, target), error=found.expected))
        return mean, samples[0]

    def clip_scores(self, sampling: Sampling | None, video_of: Mapping[str, str] | None) -> ClipScores:
        """All batches as one."""
        return ClipScores(
            prediction=join(self.predictions),
            baselines={name: join(scores) for name, scores in self.baselines.items()},
            power=torch.cat(self.powers),
            motion=torch.cat(self.motions),
            seconds=torch.cat(self.seconds),
            valid=torch.cat(self.valid),
            videos=number_videos(self.ids, video_of),
            samples=join_samples(self.samples) if self.samples else None,
            num_samples=sampling.num_samples if sampling else 0,
        )

    def _ahead(self, steps: Tensor) -> Tensor:
        """The steps within the horizons, of targets (B, Tt, ...)."""
        return steps[:, : self.horizons]
