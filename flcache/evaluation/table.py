"""An evaluation as a table for the terminal."""

from __future__ import annotations

import math

from rich.table import Table

from flcache.evaluation.result import EvaluationResult, HorizonResult

LEAK_WARNING = "LEAK: the contexts have seen the future; these numbers do not measure prediction"


def evaluation_table(result: EvaluationResult) -> Table:
    """One row a horizon: time ahead, clips, error, cosine, and skill against every baseline."""
    table = Table(title="Predicted latents, by horizon", caption=LEAK_WARNING if result.leak else None)
    baselines = list(result.horizons[0].skill) if result.horizons else []
    headings = ["horizon", "seconds", "clips", "error", "cosine", *(f"skill over {name}" for name in baselines)]
    for heading in headings:
        table.add_column(heading, justify="right")
    for horizon in result.horizons:
        table.add_row(*_cells(horizon))
    return table


def _cells(result: HorizonResult) -> list[str]:
    errors = result.prediction
    numbers = [_number(errors.error), _number(errors.cosine), *map(_number, result.skill.values())]
    return [str(result.horizon), _number(result.seconds), str(result.clips), *numbers]


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
