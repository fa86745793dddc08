"""The page of `flcache predict` says what its numbers say, and nothing where contexts had seen the future."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from example_report import player

from flcache.evaluation.report import PredictedVideo, Predictions, write_predictions


def video(name: str, skill: float) -> PredictedVideo:
    return PredictedVideo(name, [0.5, 1.0, 1.5], [0.2, 0.9, 0.1], [0.4, 0.8, 0.3], skill)


def html(tmp_path: Path, *videos: PredictedVideo, **changes: Any) -> str:
    fields: dict[str, Any] = {"name": "model", "ahead": 1, "player": player(), "provenance": {}, "leak": False}
    write_predictions(Predictions(videos=videos, **{**fields, **changes}), tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    return (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("skills", "headline", "tone"),
    [
        ([0.2], "Beats copying the last step", "good"),
        ([-0.2], "Does not beat copying the last step", "bad"),
        ([0.2, 0.1], "Beats copying the last step in 2 of 2 videos", "good"),
        ([0.2, -0.1, 0.0], "Beats copying the last step in 1 of 3 videos", "mixed"),
        ([0.0, -0.1], "Beats copying the last step in 0 of 2 videos", "bad"),
        ([float("nan")], "Does not beat copying the last step", "bad"),
    ],
)
def test_the_headline(skills: list[float], headline: str, tone: str, tmp_path: Path) -> None:
    page = html(tmp_path, *(video(f"video-{number}", skill) for number, skill in enumerate(skills)))
    assert f"<h1>{headline}</h1>" in page and f'"verdict tone-{tone}"' in page
    assert page.count('class="chart chart-surprise"') == len(skills)


def test_each_step_is_in_the_table(tmp_path: Path) -> None:
    page = html(tmp_path, video("<b>name", -0.5), ahead=3)
    assert "&lt;b&gt;name" in page and "<b>name" not in page
    assert "Each step predicted 1 to 3 steps ahead" in page
    for cell in (
        "<td>3</td>",
        "<td>0.400</td>",
        "<td>0.500</td>",
        '<td class="behind">\N{MINUS SIGN}0.50</td>',
        "1.00 s",
    ):
        assert cell in page


def test_a_leak_is_the_headline(tmp_path: Path) -> None:
    page = html(tmp_path, video("video", 0.9), leak=True)
    assert 'class="leak"' in page and "<h1>These numbers do not measure prediction</h1>" in page
