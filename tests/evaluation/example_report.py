"""A report of made-up numbers in the shape of real ones, for tests of the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flcache.evaluation.report import Report, RolledClip, TargetMoments, player_content

CONTEXT, HORIZONS, GRID, CHANNELS = 3, 5, 4, 8
BASELINES = ("copy_last", "mean_of_context", "linear", "dataset_mean", "ridge")


def evaluation(skills: list[dict[str, float | None]], *, width: float | None = 0.05) -> dict[str, Any]:
    """The JSON of an evaluation with these skills, horizon by horizon; intervals are `width` to both sides."""
    return {"horizons": [_row(index + 1, skill, width) for index, skill in enumerate(skills)], "leak": False}


def _row(horizon: int, skill: dict[str, float | None], width: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "horizon": horizon,
        "seconds": 0.25 * horizon,
        "clips": 64,
        "error": 0.1 * horizon,
        "cosine": 1 - 0.1 * horizon,
        "skill": skill,
        "baselines": {name: {"skill_over_copy_last": 0.1 * number} for number, name in enumerate(skill)},
    }
    if width is not None:
        bounds = {name: None if value is None else [value - width, value + width] for name, value in skill.items()}
        row["skill_interval"] = bounds
    return row


def full_evaluation() -> dict[str, Any]:
    """Five baselines, all of what an evaluation may hold; ahead of all up to horizon 3."""
    skills = [{name: 0.7 - 0.1 * number - 0.06 * k for number, name in enumerate(BASELINES)} for k in range(HORIZONS)]
    content = evaluation(skills) | {"fingerprint": "f00d"}
    for row in content["horizons"]:
        row["baselines"]["ridge"]["skill_over_copy_last_interval"] = [0.2, 0.4]
        row |= {"variance_ratio": 0.9, "prediction_rank": 5.0, "truth_rank": 6.0}
        row["retrieval"] = {name: {"at_1": 0.5, "at_5": 0.9, "gallery": 64} for name in ("prediction", "copy_last")}
        row["motion_quartiles"] = [{"skill": {"copy_last": 0.1 * quarter}} for quarter in range(4)]
    return content


def rolled_clips(count: int = 3, *, frames: bool = True) -> list[RolledClip]:
    generator = torch.Generator().manual_seed(0)
    numbers = np.random.default_rng(0)
    steps = CONTEXT + HORIZONS

    def latents(length: int) -> torch.Tensor:
        return torch.randn(length, GRID, GRID, CHANNELS, generator=generator)

    return [
        RolledClip(
            clip_id=f"clip-{number}",
            label="red circle",
            times=np.arange(steps, dtype=np.float32) / 4,
            valid=np.arange(steps) < steps - (number == 2),
            context=latents(CONTEXT),
            target=latents(HORIZONS),
            prediction=latents(HORIZONS),
            copy=latents(HORIZONS),
            frames=numbers.integers(0, 255, (steps, 24, 24, 3), dtype=np.uint8) if frames else None,
        )
        for number in range(count)
    ]


def player(*, frames: bool = True) -> dict[str, Any]:
    clips = rolled_clips(frames=frames)
    moments = TargetMoments(CHANNELS)
    for clip in clips:
        moments.add(clip.target)
    return player_content(clips, moments.basis())


def cache_summary(failures: int = 1) -> dict[str, Any]:
    """What `flcache.cache.check.summary` gives, as far as the page reads it."""
    failure = {"clip_id": "bad-0", "stage": "decode", "reason": "cut off", "message": "moov atom <not> found"}
    split = {"videos": 9, "planned_clips": 9, "clips": 8, "failed": failures, "tar_bytes": 10_000}
    return {
        "path": "cache",
        "latents": {"shape": [8, GRID, GRID, CHANNELS], "codec": "float16", "clip_bytes": 2048},
        "context": {"mode": "step"},
        "bytes_on_disk": 20_000,
        "decoders": {"decord": 8},
        "splits": {"train": {**split, "planned_shards": 1, "committed_shards": 1}},
        "failures": [failure] * failures,
    }


def example_report(**changes: Any) -> Report:
    losses = [{"step": step, "loss/prediction": 1 / step, "loss/copy_last": 1.0} for step in range(1, 400)]
    for line in losses[99::100]:
        skills = {name: 0.7 - 0.1 * number - 10 / line["step"] for number, name in enumerate(BASELINES)}
        line |= {f"validation/{name}": skill for name, skill in skills.items()}
    fields: dict[str, Any] = {
        "name": "example",
        "split": "val",
        "evaluation": full_evaluation(),
        "losses": losses,
        "cache": cache_summary(),
        "player": player(),
        "provenance": {"Latents": "f00d", "Encoder": "vjepa2"},
        "config": "seed: 0\n",
        "leak": False,
    }
    return Report(**{**fields, **changes})
