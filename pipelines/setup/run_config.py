"""The configuration that a checkpoint was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flcache.config import Config, load_config
from flcache.remote import is_url


def run_config(checkpoint: Path, training: Path, overrides: Sequence[str]) -> Config:
    """The configuration of `checkpoint`, under `overrides`; `training` is the folder of its run.

    Where its videos or cache do not exist, those beside the run are taken. A file that came with a run must not make us
    execute code: `encoder.trust_remote_code` is false unless overridden.
    """
    config = load_config(checkpoint / "config.yaml", ["encoder.trust_remote_code=false", *overrides])
    home = training.resolve().parent
    return replace(
        config,
        dataset=replace(config.dataset, root=_existing(config.dataset.root, home / "videos")),
        cache=replace(config.cache, dir=_existing(config.cache.dir, home / "cache")),
        training=replace(config.training, dir=str(training)),
    )


def _existing(configured: str | None, beside: Path) -> str | None:
    if configured is None or is_url(configured) or Path(configured).exists() or not beside.is_dir():
        return configured
    return str(beside)
