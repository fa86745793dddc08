"""Tables of what an evaluation may hold besides error and skill; what it does not hold is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flcache.evaluation.report.verdict import Row

COLUMNS: dict[str, tuple[str, ...]] = {
    "Variance ratio": ("variance_ratio",),
    "Effective rank": ("prediction_rank",),
    "of the truth": ("truth_rank",),
    "Retrieval@1": ("retrieval", "prediction", "at_1"),
    "by copying": ("retrieval", "copy_last", "at_1"),
    "Retrieval@5": ("retrieval", "prediction", "at_5"),
    "by copying ": ("retrieval", "copy_last", "at_5"),
    "Mean of k": ("samples", "mean"),
    "One sample": ("samples", "single"),
    "its skill": ("samples", "single_skill"),
    "Energy score": ("samples", "energy"),
    "its skill ": ("samples", "energy_skill"),
    "Best of k": ("samples", "best"),
    "Diversity": ("samples", "diversity"),
}
"""Headings, and where in a horizon of evaluation.json the value lies."""
QUARTERS = ("Stillest quarter", "Second", "Third", "Liveliest quarter")
REFERENCE = "copy_last"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first of each row names it."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def quality_table(rows: Sequence[Row]) -> Table | None:
    """Blur, collapse and retrieval per horizon; None where nothing of it was measured."""
    columns = {heading: [_at(row, path) for row in rows] for heading, path in COLUMNS.items()}
    columns = {heading: values for heading, values in columns.items() if any(value is not None for value in values)}
    return _table(rows, columns) if columns else None


def motion_table(rows: Sequence[Row]) -> Table | None:
    """Skill over copying the last step by quartile of true motion; None where there are no quartiles."""
    if not any(row.get("motion_quartiles") for row in rows):
        return None
    quartiles = [row.get("motion_quartiles") or [{}] * len(QUARTERS) for row in rows]
    columns = {
        heading: [_at(found[index], ("skill", REFERENCE)) for found in quartiles]
        for index, heading in enumerate(QUARTERS)
    }
    return _table(rows, columns)


def number(value: float | None, digits: int = 2) -> str:
    """A number with a true minus sign; a dash for none."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    rounded = round(value, digits) + 0.0  # no minus zero
    return f"{rounded:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _table(rows: Sequence[Row], columns: dict[str, list[float | None]]) -> Table:
    body = [
        (str(row["horizon"]), *(number(values[index]) for values in columns.values())) for index, row in enumerate(rows)
    ]
    return Table(("Horizon", *columns), tuple(body))


def _at(row: Any, path: Sequence[str]) -> float | None:
    """The value at `path`, or None where any part of it is missing."""
    for name in path:
        row = row.get(name) if row else None
    return None if row is None else float(row)
