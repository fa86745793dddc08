"""The geometry of the line charts: everything in percent of the plot, so that the page can stretch it to any width.

The lines are SVG paths that stretch without their strokes; all words are HTML, which does not stretch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.ticker import MaxNLocator

from flcache.evaluation.report.verdict import Row, baselines, display_name, interval

MAX_POINTS = 240
"""Of a line of losses; longer runs are averaged over neighbours."""
MIN_LABEL_GAP = 6.5
"""Percent of the height between the names at the ends of lines."""
MAX_HORIZON_TICKS = 12

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    position: float
    """Percent from the left or from the top."""
    text: str
    note: str = ""
    """Smaller, under the text."""


@dataclass(frozen=True)
class Line:
    name: str
    key: str
    """Decides its colour: a number for baselines, a word for losses."""
    path: str
    band: str
    """The 95 % interval as a closed path; empty where there is none."""
    marks: tuple[Point, ...]
    label_top: float
    """Percent from the top where its name stands at the right end, clear of the others."""


@dataclass(frozen=True)
class Chart:
    name: str
    description: str
    """What a reader who cannot see it needs to know."""
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    zero: float | None
    """Percent from the top of the line of no skill; None where zero is just the floor."""
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class _Scale:
    """From values to percent of the plot."""

    x: tuple[float, float]
    y: tuple[float, float]

    def point(self, x: float, y: float) -> Point:
        return round(self.left(x), 3), round(self.top(y), 3)

    def left(self, x: float) -> float:
        return 100 * (x - self.x[0]) / max(1e-12, self.x[1] - self.x[0])

    def top(self, y: float) -> float:
        return 100 * (self.y[1] - y) / (self.y[1] - self.y[0])


def skill_chart(rows: Sequence[Row]) -> Chart:
    """Skill over horizon, one line with its interval for each baseline."""
    horizons = [row["horizon"] for row in rows]
    y_values = [0.0, 0.1]
    for row in rows:
        for name, skill in row["skill"].items():
            y_values += [] if skill is None else [skill, *(interval(row, name) or ())]
    y_ticks = nice_ticks(min(y_values), max(y_values))
    scale = _Scale((horizons[0] - 0.4, horizons[-1] + 0.25), (y_ticks[0], y_ticks[-1]))
    lines = [_skill_line(rows, name, str(index + 1), scale) for index, name in enumerate(baselines(rows))]
    every = -(-len(rows) // MAX_HORIZON_TICKS)
    return Chart(
        name="skill",
        description=_describe_skill(rows),
        x_title="steps after the context; below, seconds",
        x_ticks=tuple(_horizon_tick(row, scale) for row in rows[::every]),
        y_ticks=tuple(Tick(scale.top(value), f"{value:g}") for value in y_ticks),
        zero=scale.top(0),
        lines=_separate_labels(lines),
    )


def loss_chart(losses: Sequence[Mapping[str, float]]) -> Chart | None:
    """Training loss over steps beside that of copying the last step; None where nothing was logged."""
    named = {"prediction": "loss/prediction", "copy last": "loss/copy_last"}
    series = {name: _series(losses, key) for name, key in named.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    everything = [point for points in series.values() for point in points]
    y_ticks = nice_ticks(0.0, max(y for _, y in everything))
    steps = [x for x, _ in everything]
    scale = _Scale((min(0.0, *steps), max(steps)), (y_ticks[0], y_ticks[-1]))
    x_ticks = [step for step in nice_ticks(0.0, max(steps)) if step <= max(steps)]
    lines = [_line(name, name.replace(" ", "-"), points, scale) for name, points in series.items()]
    last = ", ".join(f"{name} {points[-1][1]:.3f}" for name, points in series.items())
    return Chart(
        name="loss",
        description=f"Training loss over steps. At the last logged step: {last}.",
        x_title="training steps",
        x_ticks=tuple(Tick(scale.left(step), f"{step:,.0f}") for step in x_ticks),
        y_ticks=tuple(Tick(scale.top(value), f"{value:g}") for value in y_ticks),
        zero=None,
        lines=_separate_labels(lines),
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose `low` and `high`."""
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, max(high, low + 1e-6))
    return [float(round(tick, 10)) for tick in ticks]


def _skill_line(rows: Sequence[Row], name: str, key: str, scale: _Scale) -> Line:
    points = [(row["horizon"], row["skill"][name]) for row in rows if row["skill"].get(name) is not None]
    bounds = [(row["horizon"], *found) for row in rows if (found := interval(row, name))]
    upper = [scale.point(x, high) for x, _, high in bounds]
    lower = [scale.point(x, low) for x, low, _ in bounds]
    band = f"{_path([*upper, *reversed(lower)])}Z" if len(bounds) > 1 else ""
    return _line(display_name(name), key, points, scale, band=band, marked=True)


def _line(name: str, key: str, values: Sequence[Point], scale: _Scale, *, band: str = "", marked: bool = False) -> Line:
    points = [scale.point(x, y) for x, y in values]
    return Line(name, key, _path(points), band, tuple(points) if marked else (), points[-1][1])


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def _separate_labels(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines with their names moved apart where they end too close to one another: down first, then off the floor."""
    tops: dict[str, float] = {}
    lowest = -MIN_LABEL_GAP
    for line in sorted(lines, key=lambda line: line.label_top):
        lowest = tops[line.key] = max(line.label_top, lowest + MIN_LABEL_GAP)
    ceiling = 100.0
    for key in reversed(tops):
        tops[key] = min(tops[key], ceiling)
        ceiling = tops[key] - MIN_LABEL_GAP
    return tuple(replace(line, label_top=round(tops[line.key], 2)) for line in lines)


def _series(losses: Sequence[Mapping[str, float]], key: str) -> list[Point]:
    """(step, loss) of the lines that have `key`, at most `MAX_POINTS` of them, each the mean of its neighbours."""
    points = np.array([(line["step"], line[key]) for line in losses if np.isfinite(line.get(key, np.nan))])
    chunks = np.array_split(points, min(MAX_POINTS, len(points))) if len(points) else []
    return [(float(chunk[:, 0].mean()), float(chunk[:, 1].mean())) for chunk in chunks]


def _horizon_tick(row: Row, scale: _Scale) -> Tick:
    seconds = row.get("seconds")
    return Tick(scale.left(row["horizon"]), str(row["horizon"]), "" if seconds is None else f"{seconds:.3g}")


def _describe_skill(rows: Sequence[Row]) -> str:
    parts = []
    for name in baselines(rows):
        known = [row["skill"][name] for row in rows if row["skill"].get(name) is not None]
        parts.append(f"over {display_name(name)} from {known[0]:.2f} to {known[-1]:.2f}")
    return f"Skill from horizon {rows[0]['horizon']} to {rows[-1]['horizon']}: " + "; ".join(parts) + "."
