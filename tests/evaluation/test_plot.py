"""The picture of skill: a PNG that is whole or absent, says what its axes are, and leaves pyplot alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from flcache.evaluation import Errors, EvaluationResult, HorizonResult, plot_skill

NOTHING = float("nan")


def result(skills: list[float], *, leak: bool = False) -> EvaluationResult:
    horizons = tuple(
        HorizonResult(index + 1, 0.5 * (index + 1), 10, Errors(1, 1, 1), {}, {"copy_last": skill})
        for index, skill in enumerate(skills)
    )
    return EvaluationResult(horizons, leak, "f00d")


@pytest.mark.parametrize("skills", [[0.5, 0.4, 0.3], [0.1], [-2.0, NOTHING], [NOTHING, NOTHING], [0.2] * 60])
def test_any_result_makes_a_picture(tmp_path: Path, skills: list[float]) -> None:
    path = tmp_path / "skill.png"
    plot_skill(result(skills, leak=True), path)
    assert [file.name for file in tmp_path.iterdir()] == ["skill.png"]
    pixels = imread(path)
    assert pixels.shape[:2] == (630, 1050)
    assert pixels[..., :3].std() > 0.05


def test_pyplot_is_not_imported() -> None:
    code = "import sys, flcache.evaluation; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
