"""Tables of an evaluation's metrics besides error and skill; columns without values are left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flcache.evaluation.report.verdict import Row
from flcache.evaluation.result import REFERENCE, value_at

QUALITY = {
    "Variance ratio": ("variance_ratio",),
    "Effective rank": ("prediction_rank",),
    "of the truth": ("truth_rank",),
    "Retrieval@1": ("retrieval", "prediction", "at_1"),
    "by copying": ("retrieval", REFERENCE, "at_1"),
    "Retrieval@5": ("retrieval", "prediction", "at_5"),
    "by copying ": ("retrieval", REFERENCE, "at_5"),
    "Mean of k": ("samples", "mean"),
    "One sample": ("samples", "single"),
    "its skill": ("samples", "single_skill"),
    "Energy score": ("samples", "energy"),
    "its skill ": ("samples", "energy_skill"),
    "Best of k": ("samples", "best"),
    "Diversity": ("samples", "diversity"),
}
"""Headings, and paths of the values in a horizon of evaluation.json."""
MOTION = {
    heading: ("motion_quartiles", quartile, "skill", REFERENCE)
    for quartile, heading in enumerate(("Stillest quarter", "Second", "Third", "Liveliest quarter"))
}


@dataclass(frozen=True)
class Table:
    """Cells as text; the first of each row is its heading."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def quality_table(rows: Sequence[Row]) -> Table | None:
    """Spread, retrieval and samples per horizon; None where none was measured."""
    return _table(rows, QUALITY)


def motion_table(rows: Sequence[Row]) -> Table | None:
    """Skill over copying the last step by quartile of true motion; None where there are no quartiles."""
    return _table(rows, MOTION)


def number(value: float | None, digits: int = 2) -> str:
    """`value` with a typographic minus sign; a dash if it is None or not finite."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    rounded = round(value, digits) + 0.0  # no minus zero
    return f"{rounded:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _table(rows: Sequence[Row], paths: Mapping[str, Sequence[str | int]]) -> Table | None:
    """The values at `paths`, by heading, without empty columns; None if all are empty."""
    columns = {heading: [value_at(row, path) for row in rows] for heading, path in paths.items()}
    columns = {heading: values for heading, values in columns.items() if any(value is not None for value in values)}
    cells = zip(*([number(value) for value in values] for values in columns.values()), strict=True)
    body = tuple((str(row["horizon"]), *line) for row, line in zip(rows, cells, strict=False))
    return Table(("Horizon", *columns), body) if columns else None
