"""What an evaluation found, and its JSON form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Errors:
    """Means over clips, as metrics.py defines them; NaN where a horizon has no clips."""

    error: float
    l1: float
    cosine: float


@dataclass(frozen=True)
class HorizonResult:
    """One horizon."""

    horizon: int
    """Steps after the last step of the context; from 1."""
    seconds: float
    """The same as time, mean over clips; NaN where there are none."""
    clips: int
    """Clips whose step at this horizon is not padding."""
    prediction: Errors
    baselines: dict[str, Errors]
    skill: dict[str, float]
    """Against each baseline; NaN where there are no clips."""


@dataclass(frozen=True)
class EvaluationResult:
    """All horizons of one evaluation."""

    horizons: tuple[HorizonResult, ...]
    leak: bool
    """True if the contexts had seen the future: the numbers then do not measure prediction."""
    fingerprint: str
    """Of the latents that were predicted."""

    def to_json(self) -> dict[str, Any]:
        """As plain values for `json.dumps`; what is not a finite number is None."""
        horizons = [_horizon_to_json(horizon) for horizon in self.horizons]
        return {"horizons": horizons, "leak": self.leak, "fingerprint": self.fingerprint}


def _horizon_to_json(result: HorizonResult) -> dict[str, Any]:
    return {
        "horizon": result.horizon,
        "seconds": _finite(result.seconds),
        "clips": result.clips,
        **_errors_to_json(result.prediction),
        "skill": {name: _finite(skill) for name, skill in result.skill.items()},
        "baselines": {name: _errors_to_json(errors) for name, errors in result.baselines.items()},
    }


def _errors_to_json(errors: Errors) -> dict[str, float | None]:
    return {"error": _finite(errors.error), "l1": _finite(errors.l1), "cosine": _finite(errors.cosine)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
