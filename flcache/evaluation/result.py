"""Results of an evaluation, and their JSON and CSV forms."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, TextIO

from flcache.evaluation.bootstrap import Interval
from flcache.evaluation.retrieval import Retrieval
from flcache.evaluation.spread import Spread

REFERENCE = "copy_last"
"""The baseline that others are compared with."""
SHUFFLED = "shuffled_actions"
"""The prediction with the actions of other clips."""


def spoken(name: str) -> str:
    """A baseline's name as words."""
    return name.replace("_", " ")


def value_at(row: Any, path: Sequence[str | int]) -> float | None:
    """The number at `path` in a horizon's JSON; None where any part of it is missing."""
    for key in path:
        try:
            row = row[key]
        except (KeyError, IndexError, TypeError):
            return None
    return None if row is None else float(row)


def plain(value: Any) -> Any:
    """`value` as nested plain values for JSON: an interval as its bounds, and None for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Interval):
        value = [value.low, value.high]
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


@dataclass(frozen=True)
class Errors:
    """Means over clips, as defined in metrics.py; NaN where a horizon has no clips."""

    error: float
    l1: float
    cosine: float


@dataclass(frozen=True)
class MotionQuartile:
    """A quarter of the clips of one horizon, by how much the truth moves."""

    motion: float
    """Mean squared difference between the truth and the last step of the context."""
    clips: int
    error: float
    skill: dict[str, float]


@dataclass(frozen=True)
class SampleErrors:
    """Errors of the samples of a generative predictor, as defined in sampling.py; skills are over copying."""

    samples: int
    mean: float
    single: float
    best: float
    diversity: float
    energy: float
    single_skill: float
    single_skill_interval: Interval
    energy_skill: float
    energy_skill_interval: Interval


@dataclass(frozen=True)
class HorizonResult:
    """One horizon."""

    horizon: int
    """Steps after the last step of the context; from 1."""
    seconds: float
    """The same in seconds, mean over clips; NaN where there are none."""
    clips: int
    """Clips whose step at this horizon is not padding."""
    prediction: Errors
    baselines: dict[str, Errors]
    skill: dict[str, float]
    """Against each baseline; NaN where there are no clips."""
    error_interval: Interval | None = None
    skill_interval: dict[str, Interval] = field(default_factory=dict)
    baseline_error_interval: dict[str, Interval] = field(default_factory=dict)
    baseline_skill: dict[str, float] = field(default_factory=dict)
    """Skill of each baseline over copying the last step."""
    baseline_skill_interval: dict[str, Interval] = field(default_factory=dict)
    quartiles: tuple[MotionQuartile, ...] = ()
    """From the least to the most motion; empty for fewer than four clips."""
    retrieval: dict[str, Retrieval] = field(default_factory=dict)
    """By `prediction` and by `copy_last`."""
    spread: Spread | None = None
    samples: SampleErrors | None = None
    """None unless the predictor is generative."""


@dataclass(frozen=True)
class EvaluationResult:
    """All horizons of one evaluation."""

    horizons: tuple[HorizonResult, ...]
    leak: bool
    """True if the contexts had seen the future: the numbers then do not measure prediction."""
    fingerprint: str
    """Fingerprint of the predicted latents."""
    target_variance: float | None = None
    """The divisor of errors, where the encoder trains; None where it does not."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; numbers that are not finite are None."""
        horizons = [plain(_horizon_to_json(horizon)) for horizon in self.horizons]
        scale = {} if self.target_variance is None else {"target_variance": self.target_variance}
        return {"horizons": horizons, "leak": self.leak, "fingerprint": self.fingerprint, **scale}

    def write_csv(self, stream: TextIO) -> None:
        """One row per horizon; columns are the JSON's keys joined by dots, intervals as `.low` and `.high`."""
        rows = [{**_flat(row), "leak": self.leak} for row in self.to_json()["horizons"]]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _horizon_to_json(result: HorizonResult) -> dict[str, Any]:
    baselines = {
        name: {
            **vars(errors),
            "error_interval": result.baseline_error_interval.get(name),
            "skill_over_copy_last": result.baseline_skill.get(name),
            "skill_over_copy_last_interval": result.baseline_skill_interval.get(name),
        }
        for name, errors in result.baselines.items()
    }
    return {
        "horizon": result.horizon,
        "seconds": result.seconds,
        "clips": result.clips,
        **vars(result.prediction),
        "error_interval": result.error_interval,
        "skill": result.skill,
        "skill_interval": result.skill_interval,
        "baselines": baselines,
        "motion_quartiles": result.quartiles,
        "retrieval": result.retrieval,
        **(vars(result.spread) if result.spread else {}),
        **({"samples": result.samples} if result.samples else {}),
    }


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one row of dotted names."""
    row: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{above}{name}"
        if isinstance(value, list):
            value = _named(value)
        row |= _flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return row


def _named(values: list[Any]) -> dict[str, Any]:
    """Entries of a list by number, from 1; the bounds of an interval by name."""
    numbers = [str(number) for number in range(1, len(values) + 1)]
    names = numbers if any(isinstance(value, Mapping) for value in values) else ["low", "high"]
    return dict(zip(names, values, strict=True)) if values else {}
