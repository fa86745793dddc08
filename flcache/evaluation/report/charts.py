"""The geometry of the line charts, in percent of the plot, so that the page can stretch it to any width.

Lines are SVG paths whose strokes do not stretch; all text is HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.ticker import MaxNLocator

from flcache.evaluation.report.verdict import Row, baselines, interval, skill_over
from flcache.evaluation.result import REFERENCE, spoken

MAX_POINTS = 240
"""At most so many points on a line of losses; for longer runs each is a mean of neighbours."""
MIN_LABEL_GAP = 6.5
"""Least distance between the names at the ends of lines, in percent of the height."""
MAX_HORIZON_TICKS = 12
FLOOR = -0.5
"""Lower end of the plot of skill over copying, unless the prediction is lower; baselines may be below it."""

Point = tuple[float, float]
_Estimate = tuple[float | None, tuple[float, float] | None]
"""A value and its 95 % interval."""


@dataclass(frozen=True)
class Tick:
    position: float
    """Percent from the left or from the top."""
    text: str
    note: str = ""
    """Small text below."""


@dataclass(frozen=True)
class Line:
    name: str
    key: str
    """CSS class of its colour: a number for baselines, a word for losses."""
    path: str
    band: str
    """The 95 % interval as a closed path; empty where there is none."""
    marks: tuple[Point, ...]
    label_top: float
    """Position of its name at the right end, in percent from the top, apart from other names."""


@dataclass(frozen=True)
class Chart:
    name: str
    description: str
    """Alternative text."""
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    zero: float | None
    """Percent from the top of the line of no skill; None in the chart of losses."""
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class _Scale:
    x: tuple[float, float]
    y: tuple[float, float]

    def point(self, x: float, y: float) -> Point:
        return round(self.left(x), 3), round(self.top(y), 3)

    def left(self, x: float) -> float:
        return 100 * (x - self.x[0]) / max(1e-12, self.x[1] - self.x[0])

    def top(self, y: float) -> float:
        return 100 * (self.y[1] - y) / (self.y[1] - self.y[0])


@dataclass(frozen=True)
class _Series:
    """One line before it is scaled."""

    name: str
    key: str
    points: Sequence[Point]
    bounds: Sequence[tuple[float, float, float]] = ()
    """x, low, high of its interval."""


def reference_chart(rows: Sequence[Row]) -> Chart | None:
    """Skill over copying the last step, of the prediction and of every baseline; None where there are no such skills.

    Baselines far below 0 leave the plot at its floor.
    """
    prediction = _series("prediction", "prediction", [(row["horizon"], *_skill(row, REFERENCE)) for row in rows])
    others = [line for line in _baseline_lines(rows, _own_skill) if line.points and line.name != spoken(REFERENCE)]
    if not prediction.points or not others:
        return None
    lines = [prediction, *others]
    floor = min(FLOOR, *(value for _, value in prediction.points))
    return _horizon_chart("reference", _describe(lines, "over copying the last step"), rows, lines, floor)


def skill_chart(rows: Sequence[Row]) -> Chart | None:
    """Skill of the prediction over each baseline; None where no skill is known."""
    lines = _baseline_lines(rows, _skill)
    if not lines:
        return None
    return _horizon_chart("skill", _describe(lines, "of the prediction over each baseline"), rows, lines, -math.inf)


def loss_chart(losses: Sequence[Mapping[str, float]]) -> Chart | None:
    """Training loss over steps beside that of copying the last step; None where nothing was logged."""
    named = {"prediction": "loss/prediction", "copy last": "loss/copy_last"}
    lines = [_Series(name, name.replace(" ", "-"), _thinned(losses, key)) for name, key in named.items()]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    y_ticks = nice_ticks(0.0, max(loss for line in lines for _, loss in line.points))
    return _step_chart("loss", "Training loss over steps", lines, y_ticks)


def latents_chart(logged: Sequence[Mapping[str, float]]) -> Chart | None:
    """How spread out the latents of an encoder that trains are, relative to the first logged; None if it is frozen."""
    named = {"deviation": "latents/deviation", "rank": "latents/rank", "copying": "latents/copy_last"}
    lines = []
    for number, (name, key) in enumerate(named.items(), start=1):
        points = _thinned(logged, key)
        if points and points[0][1] > 0:
            lines.append(_Series(name, str(number), [(step, value / points[0][1]) for step, value in points]))
    if not lines:
        return None
    y_ticks = nice_ticks(0.0, max(value for line in lines for _, value in line.points))
    return _step_chart("latents", "Spread of the latents over steps, relative to the first", lines, y_ticks)


def validation_chart(logged: Sequence[Mapping[str, float]], names: Sequence[str]) -> Chart | None:
    """Skill on the validation clips over steps, over each baseline, a mean over horizons; None without validations.

    Baselines have the colours that they have in an evaluation of `names`.
    """
    found = dict.fromkeys(key.split("/")[1] for line in logged for key in line if key.startswith("validation/"))
    numbered = enumerate(dict.fromkeys([*names, *found]), start=1)
    lines = [_Series(spoken(name), str(number), _thinned(logged, f"validation/{name}")) for number, name in numbered]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    values = [value for line in lines for _, value in line.points]
    y_ticks = nice_ticks(max(FLOOR, min(0.0, *values)), min(1.0, max(0.1, *values)))
    return _step_chart("validation", "Validation skill over training steps, over each baseline", lines, y_ticks)


def _step_chart(name: str, description: str, lines: Sequence[_Series], y_ticks: Sequence[float]) -> Chart:
    """Lines over training steps; a line of no skill where skill may be negative."""
    last_step = max(step for line in lines for step, _ in line.points)
    scale = _Scale((0.0, last_step), (y_ticks[0], y_ticks[-1]))
    latest = ", ".join(f"{line.name} {line.points[-1][1]:.3f}" for line in lines)
    return Chart(
        name=name,
        description=f"{description}. At the last logged step: {latest}.",
        x_title="training steps",
        x_ticks=tuple(Tick(scale.left(x), f"{x:,.0f}") for x in nice_ticks(0.0, last_step) if x <= last_step),
        y_ticks=_y_ticks(y_ticks, scale),
        zero=scale.top(0) if name == "validation" else None,
        lines=_separate_labels([_line(line, scale, marked=len(line.points) == 1) for line in lines]),
    )


def surprise_chart(name: str, seconds: Sequence[float], error: Sequence[float], copy_error: Sequence[float]) -> Chart:
    """Errors of the prediction and of copying over the `seconds` of a video."""
    both = {"loss/prediction": error, "loss/copy_last": copy_error}
    logged = [{"step": at, **{key: of[place] for key, of in both.items()}} for place, at in enumerate(seconds)]
    lines = [
        _Series(line, line.replace(" ", "-"), _thinned(logged, key))
        for line, key in zip(("prediction", "copy last"), both, strict=True)
    ]
    y_ticks = nice_ticks(0.0, max([*error, *copy_error]))
    scale = _Scale((0.0, seconds[-1]), (y_ticks[0], y_ticks[-1]))
    return Chart(
        name=name,
        description=f"Error over time: at most {max(error):.3f} predicting, {max(copy_error):.3f} copying.",
        x_title="seconds into the video",
        x_ticks=tuple(Tick(scale.left(x), f"{x:g}") for x in nice_ticks(0.0, seconds[-1]) if x <= seconds[-1]),
        y_ticks=_y_ticks(y_ticks, scale),
        zero=None,
        lines=_separate_labels([_line(line, scale) for line in lines]),
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose `low` and `high`."""
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, max(high, low + 1e-6))
    return [float(round(tick, 10)) for tick in ticks]


def _skill(row: Row, name: str) -> _Estimate:
    """Skill of the prediction over a baseline."""
    return skill_over(row, name), interval(row, name)


def _own_skill(row: Row, name: str) -> _Estimate:
    """Skill of a baseline over copying the last step."""
    baseline = row.get("baselines", {}).get(name, {})
    low, high = baseline.get("skill_over_copy_last_interval") or (None, None)
    return baseline.get("skill_over_copy_last"), None if low is None or high is None else (low, high)


def _baseline_lines(rows: Sequence[Row], estimate: Callable[[Row, str], _Estimate]) -> list[_Series]:
    """One line per baseline, with its number as key, so that it has one colour in all charts."""
    return [
        _series(spoken(name), str(number), [(row["horizon"], *estimate(row, name)) for row in rows])
        for number, name in enumerate(baselines(rows), start=1)
    ]


def _series(name: str, key: str, values: Iterable[tuple[float, float | None, tuple[float, float] | None]]) -> _Series:
    """A line of (x, value, interval), without what is None."""
    known = [(x, value, bounds) for x, value, bounds in values if value is not None]
    bands = [(x, *bounds) for x, _, bounds in known if bounds is not None]
    return _Series(name, key, [(x, value) for x, value, _ in known], bands)


def _horizon_chart(name: str, description: str, rows: Sequence[Row], lines: Sequence[_Series], floor: float) -> Chart:
    values = [value for line in lines for _, value in line.points]
    values += [bound for line in lines for _, low, high in line.bounds for bound in (low, high)]
    y_ticks = nice_ticks(max(floor, min(0.0, *values)), min(1.0, max(0.1, *values)))
    scale = _Scale((rows[0]["horizon"] - 0.4, rows[-1]["horizon"] + 0.25), (y_ticks[0], y_ticks[-1]))
    every = math.ceil(len(rows) / MAX_HORIZON_TICKS)
    return Chart(
        name=name,
        description=description,
        x_title="steps after the context; below, seconds",
        x_ticks=tuple(_horizon_tick(row, scale) for row in rows[::every]),
        y_ticks=_y_ticks(y_ticks, scale),
        zero=scale.top(0),
        lines=_separate_labels([_line(line, scale, marked=True) for line in lines]),
    )


def _line(line: _Series, scale: _Scale, *, marked: bool = False) -> Line:
    points = [scale.point(x, y) for x, y in line.points]
    upper = [scale.point(x, high) for x, _, high in line.bounds]
    lower = [scale.point(x, low) for x, low, _ in line.bounds]
    band = f"{_path([*upper, *reversed(lower)])}Z" if len(line.bounds) > 1 else ""
    end = points[-1][1]
    name = f"{line.name} \N{DOWNWARDS ARROW}" if end > 100 else line.name
    marks = tuple(point for point in points if marked and point[1] <= 100)
    return Line(name, line.key, _path(points), band, marks, min(end, 100.0))


def _y_ticks(values: Sequence[float], scale: _Scale) -> tuple[Tick, ...]:
    return tuple(Tick(scale.top(value), f"{value:g}".replace("-", "\N{MINUS SIGN}")) for value in values)


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def _separate_labels(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines with names that are too close moved apart: first down, then up from the lower end of the plot."""
    tops: dict[str, float] = {}
    lowest = -MIN_LABEL_GAP
    for line in sorted(lines, key=lambda line: line.label_top):
        lowest = tops[line.key] = max(line.label_top, lowest + MIN_LABEL_GAP)
    ceiling = 100.0
    for key in reversed(tops):
        tops[key] = min(tops[key], ceiling)
        ceiling = tops[key] - MIN_LABEL_GAP
    return tuple(replace(line, label_top=round(tops[line.key], 2)) for line in lines)


def _thinned(losses: Sequence[Mapping[str, float]], key: str) -> list[Point]:
    """(step, loss) of the logged lines that have `key`; means of neighbours if there are more than `MAX_POINTS`."""
    points = np.array([(line["step"], line[key]) for line in losses if np.isfinite(line.get(key, np.nan))])
    chunks = np.array_split(points, min(MAX_POINTS, len(points))) if len(points) else []
    return [(float(chunk[:, 0].mean()), float(chunk[:, 1].mean())) for chunk in chunks]


def _horizon_tick(row: Row, scale: _Scale) -> Tick:
    seconds = row.get("seconds")
    return Tick(scale.left(row["horizon"]), str(row["horizon"]), "" if seconds is None else f"{seconds:.3g}")


def _describe(lines: Sequence[_Series], what: str) -> str:
    parts = [f"{line.name} from {line.points[0][1]:.2f} to {line.points[-1][1]:.2f}" for line in lines]
    return f"Skill {what}, from the first horizon to the last: {'; '.join(parts)}."
