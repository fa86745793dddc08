"""The benchmarks start and finish, on as little as they take; figures of a busy machine are not looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import run_forked, script

HERE = Path(__file__).parent
SMALLEST = {
    "actions.py": ["--smallest", "--folder"],
    "before_and_after.py": [str(HERE.parents[1]), "--smallest", "--rounds", "1", "--only", "loader, unchecked"],
    "combinations.py": ["--steps", "1", "--contexts", "prefix", "--only", "causal-l2-raw", "--out"],
    "encode.py": ["--clips", "1", "--rounds", "1"],
    "from_scratch.py": ["--smallest", "--folder"],
    "leak_table.py": ["--smallest", "--folder"],
    "long_videos.py": ["--minutes", "1", "--clips", "2", "--rounds", "1"],
    "object_storage.py": ["--rounds", "1", "--clips", "16"],
    "planning.py": ["--videos", "500", "--clips", "0"],
    "predictor_step.py": ["--memory", "--preset", "tiny"],
    "rollout.py": ["--preset", "tiny", "--grid", "4", "--rounds", "1"],
    "scale.py": ["--clips", "1000"],
    "stages.py": ["--clips", "16", "--rounds", "1", "--only", "0"],
}
ELSEWHERE = {"loader.py", "positions.py"}
"""`flcache bench loader` has tests of its own, of which `loader.py` is the thorough form; so has `positions.py`, which
benchmarks share."""


def test_every_benchmark_is_here() -> None:
    assert {path.name for path in HERE.glob("*.py") if not path.name.startswith("test_")} == set(SMALLEST) | ELSEWHERE


@pytest.mark.parametrize("name", SMALLEST)
def test_it_runs(name: str, tmp_path: Path) -> None:
    arguments = [*SMALLEST[name], *([str(tmp_path)] if SMALLEST[name][-1] in ("--out", "--folder") else [])]
    result = run_forked(script, HERE / name, *arguments)
    assert result.returncode == 0 and any(character.isdigit() for character in result.stdout), result.stderr
