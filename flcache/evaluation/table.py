"""An evaluation as tables for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flcache.evaluation.bootstrap import Interval
from flcache.evaluation.result import REFERENCE, SHUFFLED, EvaluationResult, spoken, value_at

WIDTH, HEAD_WIDTH = 80, 24
"""Columns of a terminal, and those left of the skills."""

Estimates = Sequence[tuple[float, Interval | None]]
DETAILS: dict[str, tuple[tuple[str | int, ...], int]] = {
    "cosine": (("cosine",), 3),
    **{
        heading: (("motion_quartiles", quartile, "skill", REFERENCE), 2)
        for quartile, heading in enumerate(("least", "less", "more", "most"))
    },
    "found": (("retrieval", "prediction", "at_1"), 2),
    "in 5": (("retrieval", "prediction", "at_5"), 2),
    "by copy": (("retrieval", REFERENCE, "at_1"), 2),
    "variance": (("variance_ratio",), 2),
    "rank": (("prediction_rank",), 1),
    "of truth": (("truth_rank",), 1),
}
"""Headings of `detail_table`, the path of the value in a horizon of evaluation.json, and its digits."""
LEAK_WARNING = "LEAK: the contexts have seen the future; these numbers do not measure prediction"

WITH_ACTIONS = "shuffled actions: the same with those of another clip; the others see none"


def evaluation_table(result: EvaluationResult) -> Table:
    """One row per horizon: time ahead, clips, error, and skill over every baseline with half its interval."""
    names = _names(result)
    found = [[(row.skill[name], row.skill_interval.get(name)) for name in names] for row in result.horizons]
    errors = [row.prediction.error for row in result.horizons]
    known = any(interval is not None for row in found for _, interval in row)
    precision = "± 95 %" if known else "too few videos for intervals"
    title = f"Predicted latents by step ahead: error, skill over each baseline ({precision})"
    return _skill_table(title, result, errors, names, found)


def detail_table(result: EvaluationResult) -> Table:
    """One row per horizon: cosine, skill by how much the truth moves, retrieval of the true future, variance and rank.

    `found` and `in 5` are the fractions of clips whose true future is the nearest, or among the five nearest, to the
    prediction; `by copy` is `found` for copying the last step.
    """
    title = "Skill over copying by quartile of motion, retrieval, variance, rank"
    table = _table(title, ["step", *DETAILS], result)
    for row in result.to_json()["horizons"]:
        table.add_row(str(row["horizon"]), *(_number(value_at(row, path), digits) for path, digits in DETAILS.values()))
    return table


def samples_table(result: EvaluationResult) -> Table | None:
    """One row per horizon of a generative predictor; None for one that gives a single future.

    `one` is a single sample, `energy` the energy score, each with its skill over copying the last step; `best` is the
    nearest sample, `diversity` the variance among them.
    """
    found = [(row, row.samples) for row in result.horizons if row.samples is not None]
    if not found:
        return None
    title = f"With {found[0][1].samples} samples a clip: skill over copying the last step (± 95 %)"
    headings = ["step", "mean", "one", "skill of one", "energy", "skill by energy", "best", "diversity"]
    table = _table(title, headings, result)
    for row, samples in found:
        one = _estimate(samples.single_skill, samples.single_skill_interval, "")
        energy = _estimate(samples.energy_skill, samples.energy_skill_interval, "")
        cells = _number(samples.mean), _number(samples.single), one, _number(samples.energy), energy
        table.add_row(str(row.horizon), *cells, _number(samples.best), _number(samples.diversity))
    return table


def baselines_table(result: EvaluationResult) -> Table:
    """One row per horizon: the skill of every baseline over copying the last step."""
    names = _names(result)[1:]
    found = [
        [(row.baseline_skill[name], row.baseline_skill_interval.get(name)) for name in names] for row in result.horizons
    ]
    errors = [row.baselines[REFERENCE].error for row in result.horizons]
    title = "Baselines by step ahead: error of copying, skill of others over it (± 95 %)"
    return _skill_table(title, result, errors, names, found)


def _skill_table(
    title: str, result: EvaluationResult, errors: Sequence[float], names: Sequence[str], found: Sequence[Estimates]
) -> Table:
    """One row per horizon: time ahead, clips, error, and the skills `found` over each of `names`."""
    table = _table(title, ["step", "seconds", "clips", "error"], result, names)
    cells = _estimates(found)
    for name, column in zip(names, zip(*cells, strict=True), strict=True):
        widest = max(len(line) for cell in column for line in cell.splitlines())
        table.add_column(spoken(name), justify="right", min_width=widest)
    for row, error, estimates in zip(result.horizons, errors, cells, strict=True):
        head = [str(row.horizon), _number(row.seconds), str(row.clips), _number(error)]
        table.add_row(*head, *estimates)
    return table


def _table(title: str, headings: Sequence[str], result: EvaluationResult, names: Sequence[str] = ()) -> Table:
    lines = [WITH_ACTIONS if SHUFFLED in names else "", LEAK_WARNING if result.leak else ""]
    caption = "\n".join(filter(None, lines)) or None
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 0), show_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _names(result: EvaluationResult) -> list[str]:
    return list(result.horizons[0].skill) if result.horizons else []


def _estimates(rows: Sequence[Estimates]) -> list[list[str]]:
    """Values with half their intervals beside them, or below them if the table would be too wide."""
    beside = [[_estimate(value, interval, "") for value, interval in row] for row in rows]
    widths = [max(map(len, column)) + 1 for column in zip(*beside, strict=True)]
    if HEAD_WIDTH + sum(widths) <= WIDTH:
        return beside
    return [[_estimate(value, interval, "\n") for value, interval in row] for row in rows]


def _estimate(value: float, interval: Interval | None, between: str) -> str:
    if interval is None or not math.isfinite(value) or not math.isfinite(interval.high - interval.low):
        return _number(value, 2)
    return f"{value:.2f}{between}±{(interval.high - interval.low) / 2:.2f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
