"""A video predicted window after window: latents, and how far prediction and copy are from the truth.

Shapes: W windows, Tc context steps, K steps after the context, N steps of a video, H x W patch grid, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flcache.errors import PredictorError
from flcache.evaluation import EvaluationOptions, clip_seeds
from flcache.evaluation.metrics import noise_level, skill
from flcache.evaluation.report import PredictedVideo, RolledClip

from ..setup.running import as_trained
from .model import ExportedModel
from .steps import Steps


@dataclass(frozen=True)
class Window:
    """One context and what was predicted after it."""

    start_s: float
    """Its first frame, in seconds of the video."""
    valid: NDArray[np.bool_]
    """(K,) False where the video has ended."""
    prediction: NDArray[np.float32]
    """(K, H, W, D) raw latents."""
    error: NDArray[np.float32]
    """(K,) mean square on standardised latents, as all errors."""
    copy_error: NDArray[np.float32]
    """(K,)"""
    power: NDArray[np.float32]
    """(K,) mean square of the truth."""


@dataclass
class Forecast:
    """All windows of a video, one every `every` steps, so that each step has a prediction at most so far ahead."""

    name: str
    every: int
    windows: list[Window] = field(default_factory=list)
    latents: list[NDArray[np.float32]] = field(default_factory=list)
    """N times (H, W, D): the first context, then each step as the truth of its nearest prediction."""
    seconds: list[float] = field(default_factory=list)
    """N"""

    def add(self, model: ExportedModel, steps: Steps) -> Tensor:
        """Predict the window `steps`. Its targets that are nearest to it, standardised, (k, H, W, D).

        Raises PredictorError for numbers that are not finite.
        """
        boundary = model.context_steps
        rolled, prediction = roll_out(model, steps, f"{self.name}-{len(self.windows)}")
        truths = rolled.target.square().mean((1, 2, 3))
        errors = rolled.prediction_error.mean((1, 2)), rolled.copy_error.mean((1, 2)), truths
        if not all(each.isfinite().all() for each in errors):
            raise PredictorError(
                f"{self.name}: latents or prediction are not finite at {steps.seconds[0, 0]:.2f} s, in the precision "
                f"of its training ({model.predictor.card.precision}); try another --device"
            )
        valid = steps.valid[boundary:]
        self.windows.append(Window(float(steps.seconds[0, 0]), valid, prediction, *(each.numpy() for each in errors)))
        nearest = np.flatnonzero(valid[: self.every])
        kept = [] if self.latents else list(steps.content[:boundary])
        self.latents += [*kept, *steps.targets[boundary:][nearest]]
        seconds = steps.seconds.mean(axis=1)
        self.seconds += [*seconds[: len(kept)].tolist(), *seconds[boundary:][nearest].tolist()]
        return rolled.target[torch.from_numpy(nearest)]

    def summary(self) -> PredictedVideo:
        """Each step by its nearest prediction."""
        valid = np.concatenate([window.valid[: self.every] for window in self.windows])
        error, copy_error, power = (
            torch.from_numpy(np.concatenate([each[: self.every] for each in of])[valid]).double()
            for of in zip(*((window.error, window.copy_error, window.power) for window in self.windows), strict=True)
        )
        found = float(skill(error.mean(), copy_error.mean(), noise_level(power.mean())))
        seconds = self.seconds[-len(error) :]
        return PredictedVideo(self.name, seconds, error.tolist(), copy_error.tolist(), found)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write all of it as .npz, which needs no pickle to be read."""
        names = ("prediction", "valid", "error", "copy_error")
        stacked: dict[str, Any] = {name: np.stack([getattr(each, name) for each in self.windows]) for name in names}
        first = len(self.seconds) - sum(int(window.valid[: self.every].sum()) for window in self.windows)
        np.savez(
            path,
            latents=np.stack(self.latents),
            seconds=np.array(self.seconds),
            first_step=first + self.every * np.arange(len(self.windows)),
            fingerprint=np.array(fingerprint),
            **stacked,
        )


@torch.no_grad()
def roll_out(model: ExportedModel, steps: Steps, name: str) -> tuple[RolledClip, NDArray[np.float32]]:
    """The window `steps` of latents, standardised, with its prediction; and that as raw latents (K, H, W, D)."""
    boundary, standardise = model.context_steps, model.predictor.statistics.standardise
    given = steps.content, steps.targets, steps.times, steps.actions
    latents, targets, times, actions = (torch.from_numpy(array)[None].to(model.device) for array in given)
    taken = actions if model.arrays else None
    predicted = _predict(model, latents[:, :boundary], times[:, :boundary], times[:, boundary:], name, taken)
    context, target, copied, prediction = (
        standardise(raw[0]).cpu()
        for raw in (latents[:, :boundary], targets[:, boundary:], targets[:, boundary - 1 : boundary], predicted)
    )
    rolled = RolledClip(
        clip_id=name,
        times=steps.times,
        valid=steps.valid,
        context=context,
        target=target,
        prediction=prediction,
        copy=copied.expand(len(target), -1, -1, -1),
    )
    return rolled, predicted[0].cpu().numpy()


def _predict(
    model: ExportedModel,
    context: Tensor,
    context_times: Tensor,
    target_times: Tensor,
    name: str,
    actions: Tensor | None,
) -> Tensor:
    """Raw latents (1, K, H, W, D), in the precision of the training; of a generative predictor the mean of samples."""
    predictor, given = model.predictor, (context, context_times, target_times)
    with as_trained(predictor.card.precision, model.device):
        if not predictor.predictor.generative:
            return predictor(*given, actions=actions)
        samples = [
            predictor(*given, seeds=clip_seeds(0, [name], number)) for number in range(EvaluationOptions.samples)
        ]
        return torch.stack(samples).mean(0)
