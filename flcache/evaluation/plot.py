"""A picture of skill over horizon, with its intervals."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flcache.evaluation.result import EvaluationResult, spoken
from flcache.evaluation.table import LEAK_WARNING

MAX_TICKS = 16


def plot_skill(result: EvaluationResult, path: Path) -> None:
    """Write a PNG with one line per baseline; `path` is replaced only once it is complete."""
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    figure.suptitle(LEAK_WARNING if result.leak else "Skill of the predicted latents", fontsize=10)
    axes = figure.add_subplot()
    _set_limits(axes, result)
    _draw_skill(axes, result)
    axes.axhline(0, color="black", linewidth=1)
    axes.text(0.55, 0, "no better than the baseline", va="bottom", fontsize=8)  # on the left, far from most skills
    _label_horizons(axes, result)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)


def _set_limits(axes: Axes, result: EvaluationResult) -> None:
    """Limits that show zero and every finite skill, of which there may be none."""
    skills = [skill for horizon in result.horizons for skill in horizon.skill.values() if math.isfinite(skill)]
    lowest, highest = min([0.0, *skills]), max([0.1, *skills])
    margin = 0.1 * (highest - lowest)
    axes.set_xlim(0.5, len(result.horizons) + 0.5)
    axes.set_ylim(lowest - margin, highest + margin)


def _draw_skill(axes: Axes, result: EvaluationResult) -> None:
    horizons = [horizon.horizon for horizon in result.horizons]
    for name in result.horizons[0].skill:
        skills = [horizon.skill[name] for horizon in result.horizons]
        (line,) = axes.plot(horizons, skills, marker="o", label=f"over {spoken(name)}")
        bounds = [horizon.skill_interval.get(name) for horizon in result.horizons]
        low, high = ([getattr(bound, side, math.nan) for bound in bounds] for side in ("low", "high"))
        axes.fill_between(horizons, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_ylabel("skill")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)


def _label_horizons(axes: Axes, result: EvaluationResult) -> None:
    labelled = result.horizons[:: math.ceil(len(result.horizons) / MAX_TICKS)]
    timed = [horizon for horizon in labelled if math.isfinite(horizon.seconds)]
    axes.set_xticks([horizon.horizon for horizon in labelled])
    axes.set_xlabel("horizon (steps)")
    seconds = axes.secondary_xaxis("top")
    seconds.set_xticks([horizon.horizon for horizon in timed], labels=[f"{horizon.seconds:.3g}" for horizon in timed])
    seconds.set_xlabel("seconds after the last context step")
