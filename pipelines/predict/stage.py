"""flcache predict VIDEO... --model DIR [--out DIR]: what an exported model predicts of videos, and how surprised it is.

OUT/<video>.npz          latents and predictions of each video
OUT/predictions.html     the surprise over each video, and a player of some windows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal

from flcache.config import Config
from flcache.errors import ConfigError, DecodeError
from flcache.evaluation.report import (
    PredictedVideo,
    Predictions,
    RolledClip,
    TargetMoments,
    clips_that_fit,
    player_content,
    seen_region,
    write_predictions,
)
from flcache.videos import DecodePool

from ..setup.clips import open_pool
from ..setup.encoder import pick_device
from ..setup.progress import Progress
from .forecast import Forecast, roll_out
from .model import ExportedModel, open_model
from .steps import as_steps, encoded, encoded_windows, request_at, sampling_rate

PAGE = "predictions.html"


def run(videos: Sequence[Path], folder: Path, out: Path, *, every: int = 1, device: str = "auto") -> None:
    """Predict `videos` with the model in `folder`, from a new context every `every` steps.

    Raises DecodeError, with a line for each video that cannot be read, after all others are done.
    """
    device = pick_device(device)
    model = open_model(folder, device)
    ahead = model.spec.latent_shape[0] - model.context_steps
    if every > ahead:
        raise ConfigError(f"--every={every}: this model predicts {ahead} steps after a context; give 1 to {ahead}")
    names, failed = _names(videos), []
    done: dict[Path, _Done] = {}
    moments = TargetMoments(model.spec.latent_shape[-1])
    decoding = open_pool(_decoding(device), model.arrays)
    with decoding as pool, Progress("Predicting", len(names), "videos") as progress:
        for path, name in names.items():
            try:
                done[path] = _predict(model, pool, path, Forecast(name, every), moments, out)
                progress.advance()
            except DecodeError as error:
                failed.append(str(error))
                progress.advance(failed=True)
        if done:
            player = _player(model, pool, done, moments)
            summaries = [each.summary for each in done.values()]
            page = Predictions(
                folder.resolve().name, summaries, every, player, _provenance(model, folder), model.predictor.card.leak
            )
            write_predictions(page, out / PAGE)
    for each in done.values():
        print(f"{each.file}: {len(each.summary.error)} steps, skill over copying the last {each.summary.skill:.2f}")
    if done:
        print(f"{out / PAGE}: {decimal((out / PAGE).stat().st_size)}; open it in a browser")
    if failed:
        raise DecodeError("\n".join(failed))


@dataclass(frozen=True)
class _Done:
    """What is kept in memory of a video."""

    file: Path
    summary: PredictedVideo
    starts_s: tuple[float, ...]
    """Seconds at which its windows begin."""


def _predict(
    model: ExportedModel, pool: DecodePool, path: Path, forecast: Forecast, moments: TargetMoments, out: Path
) -> _Done:
    """Predict a video and write its latents. Raises DecodeError if it cannot be read or is too short."""
    for window in encoded_windows(model, pool, path, forecast.every):
        if not window.valid[model.context_steps]:
            break
        moments.add(forecast.add(model, window))
    if not forecast.windows:
        raise DecodeError(
            f"{path}: shorter than a context of {model.context_steps} steps and one to predict; take a longer video",
            reason="too short",
        )
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{forecast.name}.npz"
    forecast.save(file, model.predictor.card.fingerprint)
    return _Done(file, forecast.summary(), tuple(window.start_s for window in forecast.windows))


def _player(
    model: ExportedModel, pool: DecodePool, done: Mapping[Path, _Done], moments: TargetMoments
) -> dict[str, Any]:
    """The player's content: windows spread evenly over the first videos, decoded once more for their frames."""
    fit = clips_that_fit(model.spec.latent_shape)
    shown = dict(list(done.items())[:fit])
    clips: list[RolledClip] = []
    for path, each in shown.items():
        picked = np.linspace(0, len(each.starts_s) - 1, min(len(each.starts_s), fit // len(shown))).round().astype(int)
        rate, starts = sampling_rate(model, pool, path), [each.starts_s[number] for number in picked]
        requests = [(start_s, path, request_at(model, start_s, rate)) for start_s in starts]
        for start_s, clip in pool.decode(requests):
            if isinstance(clip, DecodeError):
                raise clip
            steps = as_steps(model, clip)
            rolled, _ = roll_out(model, encoded(model, steps), f"{each.summary.name}-{start_s:.2f}")
            left, top, right, bottom = seen_region(model.spec.hard["processor"], *clip.frames.shape[1:3])
            frames = steps.content[:, 0, top:bottom, left:right]
            clips.append(replace(rolled, label=f"{start_s:.1f} s {each.summary.name}", frames=frames))
    return player_content(clips, moments.basis())


def _decoding(device: str) -> Config:
    """The defaults, for an encoder on `device`."""
    config = Config()
    return replace(config, encode=replace(config.encode, device=pick_device(device)))


def _names(videos: Sequence[Path]) -> dict[Path, str]:
    """A name for the files of each video: its own, with a number where two are called the same."""
    names: dict[Path, str] = {}
    for path in videos:
        taken, number = set(names.values()), 2
        name = path.stem
        while name in taken:
            name, number = f"{path.stem}-{number}", number + 1
        names.setdefault(path, name)
    return names


def _provenance(model: ExportedModel, folder: Path) -> dict[str, str]:
    card, rule = model.predictor.card, model.rule
    rate = f"{rule.fps:g} frames a second" if rule.fps else f"every {rule.stride}. frame"
    return {
        "Model": str(folder),
        "Predictor": f"{card.options.kind} {card.options.preset}, trained for {card.step} steps",
        "Latents": card.fingerprint,
        "Context": f"{model.context_steps} of {card.latent_shape[0]} steps; mode {model.encoder.context.mode}",
        "Clips": f"{rule.frames} frames at {rate}",
        "Versions": ", ".join(f"{name} {version(name)}" for name in ("flcache", "torch", "transformers")),
    }
