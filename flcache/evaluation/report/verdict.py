"""An evaluation in one line: at which horizons the prediction is ahead of every baseline.

Ahead of a baseline means that the whole 95 % interval of the skill over it is above 0; behind, that all of it is below;
level, that it contains 0 or could not be computed. In an evaluation of before there were intervals, the sign of the
skill decides, and the page says so. Where the skill is missing or not finite, the prediction is not ahead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flcache.evaluation.result import SHUFFLED, spoken

Outcome = Literal["ahead", "level", "behind", "unknown"]
Row = Mapping[str, Any]
"""One entry of `horizons` in evaluation.json."""


@dataclass(frozen=True)
class Verdict:
    headline: str
    detail: str
    tone: Literal["good", "mixed", "bad", "none"]


def verdict(evaluation: Mapping[str, Any] | None, *, leak: bool) -> Verdict:
    """The headline of an evaluation, from its JSON."""
    rows = evaluated_rows(evaluation)
    if leak:
        return Verdict("These numbers do not measure prediction", "The contexts had seen the future.", "bad")
    if not rows:
        return Verdict("Not evaluated yet", 'Run "flcache evaluate", then make this page again.', "none")
    if baselines(rows) and _tried_intervals(rows) and not has_intervals(rows):
        return Verdict(
            "No verdict: too few videos", "Skills are shown without intervals, which want two videos.", "none"
        )
    names = list(dict.fromkeys(name for row in rows for name in row["skill"]))
    opponents = [name for name in names if name != SHUFFLED]  # a check of the prediction, and no rival of it
    won = [row["horizon"] for row in rows if all(outcome(row, name) == "ahead" for name in opponents)]
    opponent = "every baseline" if len(opponents) > 1 else spoken(opponents[0])
    if len(won) == len(rows):
        return Verdict(f"Beats {opponent} at {_every(rows)}", _detail(rows, names), "good")
    if won:
        return Verdict(f"Beats {opponent} at {horizon_words(won)}", _detail(rows, names), "mixed")
    return Verdict(f"Does not beat {opponent} at any horizon", _detail(rows, names), "bad")


def evaluated_rows(evaluation: Mapping[str, Any] | None) -> list[Row]:
    """The horizons that have clips and were compared with a baseline."""
    rows = evaluation.get("horizons", []) if evaluation else []
    return [row for row in rows if row["clips"] and row.get("skill")]


def baselines(rows: Sequence[Row]) -> list[str]:
    """Names of the baselines with a finite skill at any horizon, in the order of the evaluation."""
    return list(dict.fromkeys(name for row in rows for name in row["skill"] if skill_over(row, name) is not None))


def skill_over(row: Row, baseline: str) -> float | None:
    """The skill; None where it is missing or not finite."""
    skill = row["skill"].get(baseline)
    return skill if skill is not None and math.isfinite(skill) else None


def interval(row: Row, baseline: str) -> tuple[float, float] | None:
    """The 95 % interval of the skill over `baseline`; None where it is missing or not finite."""
    found = (row.get("skill_interval") or {}).get(baseline)
    if found is None or any(bound is None or not math.isfinite(bound) for bound in found):
        return None
    return float(found[0]), float(found[1])


def has_intervals(rows: Sequence[Row]) -> bool:
    return any(interval(row, name) for row in rows for name in row["skill"])


def _tried_intervals(rows: Sequence[Row]) -> bool:
    return any(row.get("skill_interval") for row in rows)


def outcome(row: Row, baseline: str) -> Outcome:
    """How the prediction compares with `baseline` at one horizon."""
    skill = skill_over(row, baseline)
    if skill is None:
        return "unknown"
    low, high = interval(row, baseline) or ((-math.inf, math.inf) if _tried_intervals([row]) else (skill, skill))
    if low > 0:
        return "ahead"
    return "behind" if high < 0 else "level"


def strongest(row: Row) -> tuple[str, float | None]:
    """The baseline with the least skill over it, and that skill; the first one and None if no skill is known."""
    known = [(name, value) for name in row["skill"] if (value := skill_over(row, name)) is not None]
    return min(known, key=lambda pair: pair[1]) if known else (next(iter(row["skill"])), None)


def horizon_words(horizons: Sequence[int]) -> str:
    """[1, 2, 3, 5] as `horizons 1 to 3 and 5`."""
    runs: list[list[int]] = []
    for horizon in horizons:
        if runs and horizon == runs[-1][-1] + 1:
            runs[-1].append(horizon)
        else:
            runs.append([horizon])
    words = [[f"{run[0]} to {run[-1]}"] if len(run) > 2 else list(map(str, run)) for run in runs]
    *first, last = (word for run in words for word in run)
    named = f"{', '.join(first)} and {last}" if first else last
    return f"horizon {named}" if len(horizons) == 1 else f"horizons {named}"


def _every(rows: Sequence[Row]) -> str:
    horizons = [row["horizon"] for row in rows]
    return "its only horizon" if len(rows) == 1 else f"every horizon, {horizons[0]} to {horizons[-1]}"


def _detail(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The horizons and baselines where the prediction is not ahead; and whether there are intervals."""
    sentences = []
    for words, what in (("level", "level with"), ("behind", "behind"), ("unknown", "no finite skill over")):
        for name in names:
            horizons = [row["horizon"] for row in rows if outcome(row, name) == words]
            if horizons:
                sentences.append(f"{what.capitalize()} {spoken(name)} at {horizon_words(horizons)}.")
    if not sentences:
        found = [(name, skill_over(row, name) or 0.0) for row in rows for name in row["skill"]]
        name, skill = min(found, key=lambda pair: pair[1])
        sentences.append(f"The least skill at any horizon is {skill:.2f}, over {spoken(name)}.")
    if not _tried_intervals(rows):
        sentences.append("This evaluation has no intervals: the comparison is of means alone.")
    return " ".join(sentences)
