"""A picture of skill over horizon."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flcache.evaluation.report import LEAK_WARNING
from flcache.evaluation.result import EvaluationResult


def plot_skill(result: EvaluationResult, path: Path) -> None:
    """Write a PNG with one line per baseline; it appears at `path` only when it is whole."""
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    horizons = [horizon.horizon for horizon in result.horizons]
    for name in result.horizons[0].skill:
        skills = [horizon.skill[name] for horizon in result.horizons]
        axes.plot(horizons, skills, marker="o", label=f"against {name.replace('_', ' ')}")
    _mark_copying(axes)
    axes.set_xlabel("horizon (steps)")
    axes.set_ylabel("skill")
    axes.set_title(LEAK_WARNING if result.leak else "Skill of the predicted latents", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    _add_seconds(axes, result)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)


def _mark_copying(axes: Axes) -> None:
    axes.axhline(0, color="black", linewidth=1)
    axes.annotate(
        "copying the last step", (1, 0), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points",
        ha="right", va="bottom", fontsize=8,
    )  # fmt: skip
    axes.margins(y=0.15)
    axes.use_sticky_edges = False


def _add_seconds(axes: Axes, result: EvaluationResult) -> None:
    """Label the horizons below in steps and above in seconds, at most 16 of them."""
    stride = math.ceil(len(result.horizons) / 16)
    timed = [horizon for horizon in result.horizons if math.isfinite(horizon.seconds)][::stride]
    axes.set_xticks([horizon.horizon for horizon in result.horizons][::stride])
    seconds = axes.secondary_xaxis("top")
    seconds.set_xticks([horizon.horizon for horizon in timed], labels=[f"{horizon.seconds:.3g}" for horizon in timed])
    seconds.set_xlabel("seconds after the last context step")
