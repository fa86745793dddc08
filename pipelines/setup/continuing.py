"""Which settings may change when a run is continued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from flcache.config import Config, as_dict
from flcache.errors import TrainingError

MAY_CHANGE = (
    "training.steps",
    "training.*_every",
    "training.validate_clips",
    "training.keep_checkpoints",
    "training.dir",
    "training.trackers",
    "training.device",
    "training.precision",
    "training.batch_size",  # the position in the data counts samples
    "training.accumulate",
    "training.context_steps",  # evaluation only
    "predictor.compile",
    "predictor.checkpoint_activations",
    "predictor.flow.sampler*",
    "predictor.flow.guidance",
    "evaluation.*",
    "probe.*",
    # these decide the latents, whose fingerprint is compared, or where files are
    "dataset.*",
    "clip.*",
    "encoder.*",
    "encode.*",
    "cache.dir",
    "cache.local_*",
    "cache.codec",
    "cache.min_cosine",
)
ORDER_OF_VIDEOS = ("cache.seed", "cache.shard_bytes")
"""They decide the order of clips for `training.source=videos`; a cache has its own plan."""


def as_begun(config: Config, checkpoint: Path) -> Config:
    """`config`; if it does not set `training.rollout_steps`, with those of the run in `checkpoint`."""
    training, rollout_steps = config.training, _kept(checkpoint / "config.yaml").get("training.rollout_steps")
    if training.objective.rollout_steps is not None or type(rollout_steps) is not int:
        return config
    objective = replace(training.objective, rollout_steps=rollout_steps)
    return replace(config, training=replace(training, objective=objective))


def check_settings(config: Config, checkpoint: Path) -> list[str]:
    """One line for each key that differs from the configuration in `checkpoint`.

    Raises TrainingError naming every key that cannot change within a run, with both values.
    """
    before, now = _flat(as_dict(Config())) | _kept(checkpoint / "config.yaml"), _flat(as_dict(config))
    keys = [*now, *(key for key in before if key.startswith("predictor.overrides.") and key not in now)]
    changed = {
        key: f"{key} was {before.get(key)}, is {now.get(key)}" for key in keys if before.get(key) != now.get(key)
    }
    free = MAY_CHANGE if config.training.source == "videos" else (*MAY_CHANGE, *ORDER_OF_VIDEOS)
    fixed = [line for key, line in changed.items() if not any(fnmatchcase(key, pattern) for pattern in free)]
    if fixed:
        raise TrainingError(
            f"{checkpoint}: a run keeps the settings that it began with: {'; '.join(fixed)}; set them back, or start "
            'anew in another "training.dir"'
        )
    return list(changed.values())


def _kept(path: Path) -> dict[str, Any]:
    """The values in a checkpoint's config.yaml by dotted key. Raises TrainingError if it cannot be read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: cannot be read, so nobody knows the settings of this run: {reason}") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path}: holds no keys and values, so nobody knows the settings of this run")
    return _flat(content)


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Values by dotted key, tuples as lists, as YAML has them; an empty section has none."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
