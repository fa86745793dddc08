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
from flcache.evaluation.baselines import BASELINES, Predict, copy_last
from flcache.evaluation.metrics import Scores, join, power, score
from flcache.evaluation.result import EvaluationResult
from flcache.evaluation.retrieval import Gallery
from flcache.evaluation.sampling import SampleScores, Sampling, join_samples, score_samples
from flcache.evaluation.spread import SpreadMoments
from flcache.evaluation.summary import ClipScores, summarise
from flcache.leak import check_split


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
    device: torch.device | str = "cpu",
) -> EvaluationResult:
    """Score `predict` on the targets of `batches`, up to `horizons` steps ahead (None: as far as the clips go).

    All batches have the same steps and split. `sampling` asks a generative predictor for several futures of every
    context. Memory is a batch, a few numbers a clip, and what `retrieval` and `spread` keep of the first clips. Raises
    LeakError if the contexts have seen the future, which `seen_until` tells, and `allow_leak` is False; DataError if
    there are no batches.
    """
    found = _Found(horizons, {name: [] for name in baselines})
    leak = False
    for batch in batches:
        leak |= check_split(seen_until, batch.context_steps, allow_leak=allow_leak)
        found.add(batch := batch.to(device), predict, baselines)
        if sampling is not None:
            found.add_samples(batch, sampling)
    if not found.valid:
        raise DataError('no clips to evaluate: "evaluation.split" names a split without encoded clips')
    retrieval = {name: gallery.finish() for name, gallery in found.galleries.items()}
    horizon_results = summarise(found.clip_scores(sampling), retrieval, found.spread.finish())
    return EvaluationResult(horizon_results, leak, fingerprint)


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
    galleries: dict[str, Gallery] = field(default_factory=lambda: {"prediction": Gallery(), "copy_last": Gallery()})
    spread: SpreadMoments = field(default_factory=SpreadMoments)

    def add(self, batch: LatentBatch, predict: Predict, baselines: Mapping[str, Predict]) -> None:
        context, context_times = batch.context, batch.context_times
        target, target_times = self._ahead(batch.target), self._ahead(batch.target_times)
        valid = self._ahead(batch.target_valid)
        prediction = predict(context, context_times, target_times)
        copied = copy_last(context, context_times, target_times)
        self.predictions.append(score(prediction, target))
        for name, baseline in baselines.items():
            self.baselines[name].append(score(baseline(context, context_times, target_times), target))
        self.powers.append(power(target))
        self.motions.append(power(target - copied))
        self.seconds.append((target_times - context_times[:, -1:]).cpu().double())
        self.valid.append(valid.cpu())
        self.galleries["prediction"].add(prediction, target, valid)
        self.galleries["copy_last"].add(copied, target, valid)
        self.spread.add(prediction, target, valid)

    def add_samples(self, batch: LatentBatch, sampling: Sampling) -> None:
        target_times = self._ahead(batch.target_times)
        samples = sampling.draw(batch.context, batch.context_times, target_times, sampling.num_samples)
        self.samples.append(score_samples(samples, self._ahead(batch.target)))

    def clip_scores(self, sampling: Sampling | None) -> ClipScores:
        """All batches as one."""
        return ClipScores(
            prediction=join(self.predictions),
            baselines={name: join(scores) for name, scores in self.baselines.items()},
            power=torch.cat(self.powers),
            motion=torch.cat(self.motions),
            seconds=torch.cat(self.seconds),
            valid=torch.cat(self.valid),
            samples=join_samples(self.samples) if self.samples else None,
            num_samples=sampling.num_samples if sampling else 0,
        )

    def _ahead(self, steps: Tensor) -> Tensor:
        """The steps within the horizons, of targets (B, Tt, ...)."""
        return steps[:, : self.horizons]
