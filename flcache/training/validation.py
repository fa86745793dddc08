"""Validation while training: what a run asks for between two steps, and how it is logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean

REFERENCE = "copy_last"
"""The baseline whose skill tells which checkpoint is the best."""


@dataclass(frozen=True)
class Validation:
    """Skill on validation clips: over each baseline at each horizon, 0 where it is no better."""

    skill: Mapping[str, Mapping[int, float]]

    @property
    def score(self) -> float:
        """Mean over horizons of the skill over copying the last step."""
        return fmean(self.skill[REFERENCE].values())

    def metrics(self) -> dict[str, float]:
        """`validation/BASELINE/HORIZON`, and the mean over horizons as `validation/BASELINE`."""
        metrics = {}
        for name, skills in self.skill.items():
            metrics[f"validation/{name}"] = fmean(skills.values())
            metrics |= {f"validation/{name}/{horizon}": skill for horizon, skill in skills.items()}
        return metrics


Validate = Callable[[], Validation]
"""Validates the model in eval mode, and changes nothing that training depends on. Called on every process."""
