"""flcache report DIR [--out FILE] [KEY=VALUE ...]: a trained run as one HTML page that opens anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from flcache.cache import summary
from flcache.config import Config, to_yaml
from flcache.evaluation.report import Report, write_report
from flcache.training import RunRecord, chosen_checkpoint, open_checkpoint, read_metrics

from ..setup.cache import cache_store
from ..setup.run_config import run_config
from .player import gather_pictures


def run(
    directory: Path, overrides: Sequence[str] = (), out: Path | None = None, checkpoint: Path | None = None
) -> None:
    """Write `report.html` of the run in `directory`, a `training.dir` or the folder that holds it as `training`.

    The configuration is the one that the newest checkpoint, or the named one, was trained with, under `overrides`.
    """
    training = directory if (directory / "checkpoints").is_dir() else directory / "training"
    checkpoint = chosen_checkpoint(training / "checkpoints", checkpoint)
    record = open_checkpoint(checkpoint).record
    config = run_config(checkpoint, training, overrides)
    kept = training / "evaluation.json"
    evaluation = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None
    home = training.resolve()
    player, unread = gather_pictures(config, checkpoint)
    page = Report(
        name=home.parent.name if home.name == "training" else home.name,
        split=config.evaluation.split,
        evaluation=evaluation,
        losses=read_metrics(training / "metrics.jsonl"),
        cache=summary(cache_store(config)) if config.training.source == "cache" and config.cache.dir else None,
        player=player,
        provenance=_provenance(config, record, checkpoint),
        config=to_yaml(config),
        leak=record.leak or bool(evaluation and evaluation["leak"]),
        notes=_notes(evaluation, record, unread),
    )
    path = out or directory / "report.html"
    write_report(page, path)
    print(f"{path}: {decimal(path.stat().st_size)}; open it in a browser")


def _provenance(config: Config, record: RunRecord, checkpoint: Path) -> dict[str, str]:
    """Where the numbers of the page come from: latents, encoder, training, versions."""
    encoder, training = config.encoder, config.training
    architecture = encoder.architecture.get("model_type", "unknown")
    revision = f" at {encoder.revision}" if encoder.revision else ""
    split = config.evaluation.split
    random = f"{architecture}, random weights of seed {encoder.seed}"
    overrides = ", ".join(f"{key}={value}" for key, value in config.predictor.overrides.items())
    return {
        "Latents": record.fingerprint,
        "Encoder": f"{encoder.name}{revision}" if encoder.name else random,
        "Context mode": config.encode.context.mode,
        "Predictor": " ".join(filter(None, [config.predictor.preset, overrides])),
        "Trained": f"{record.step} steps of {training.batch_size * training.accumulate} clips, "
        f"{training.objective.distance} loss",
        "Checkpoint": str(checkpoint),
        "Split": f"{split}: {getattr(config.dataset, split) or config.dataset.root}",
        "Versions": ", ".join(f"{name} {version(name)}" for name in ("flcache", "torch", "transformers")),
    }


def _notes(evaluation: dict[str, Any] | None, record: RunRecord, unread: dict[str, str]) -> list[str]:
    notes = []
    evaluated = evaluation and evaluation.get("end_to_end", {}).get("trained_from", evaluation["fingerprint"])
    if evaluated and evaluated != record.fingerprint:
        notes.append(
            f"evaluation.json is of other latents ({evaluated[:12]}) than the checkpoint "
            f"({record.fingerprint[:12]}): run flcache evaluate again."
        )
    elif evaluation and evaluation["step"] != record.step:
        notes.append(
            f"evaluation.json is of step {evaluation['step']}, the checkpoint of step {record.step}: "
            f"run flcache evaluate again."
        )
    if unread:
        clip_id, reason = next(iter(unread.items()))
        notes.append(
            f"The player lacks the frames of {len(unread)} clips, such as {clip_id}: {reason}. If the videos "
            f"are elsewhere, give dataset.root=PATH."
        )
    return notes
