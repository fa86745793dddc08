"""The page of `flcache predict`: how surprising each video was, step by step, and the player of some windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flcache.evaluation.report.charts import surprise_chart
from flcache.evaluation.report.page import fill_template, write_page


@dataclass(frozen=True)
class PredictedVideo:
    """Errors on standardised latents of the steps of a video that were predicted."""

    name: str
    seconds: Sequence[float]
    """Of each step, from the first frame of the video."""
    error: Sequence[float]
    copy_error: Sequence[float]
    skill: float
    """Over copying the last step; NaN where an error is not finite."""

    @property
    def mean_error(self) -> float:
        return sum(self.error) / len(self.error)

    @property
    def mean_copy_error(self) -> float:
        return sum(self.copy_error) / len(self.copy_error)

    @property
    def surprise_s(self) -> float:
        """Seconds of the step with the largest error."""
        return self.seconds[self.error.index(max(self.error))]


@dataclass(frozen=True)
class Predictions:
    """The content of the page as plain values."""

    name: str
    videos: Sequence[PredictedVideo]
    ahead: int
    """The most steps that a step was predicted ahead."""
    player: Mapping[str, Any]
    """Result of `player_content`."""
    provenance: Mapping[str, str]
    leak: bool
    """True if the contexts had seen the future."""


def write_predictions(page: Predictions, path: Path) -> None:
    """Write the page; `path` is replaced only once it is complete."""
    charts = [
        (surprise_chart(f"surprise-{number}", video.seconds, video.error, video.copy_error), video)
        for number, video in enumerate(page.videos)
    ]
    headline, tone = _verdict(page)
    ahead = "predicted one step ahead" if page.ahead == 1 else f"predicted 1 to {page.ahead} steps ahead"
    html = fill_template("predictions.html", page=page, charts=charts, headline=headline, tone=tone, ahead=ahead)
    write_page(html, path)


def _verdict(page: Predictions) -> tuple[str, str]:
    """The headline, and the tone of its colour."""
    if page.leak:
        return "These numbers do not measure prediction", "bad"
    won, count = sum(video.skill > 0 for video in page.videos), len(page.videos)
    if count == 1:
        return ("Beats copying the last step", "good") if won else ("Does not beat copying the last step", "bad")
    tone = "good" if won == count else "mixed" if won else "bad"
    return f"Beats copying the last step in {won} of {count} videos", tone
