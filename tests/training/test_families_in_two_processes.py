"""Two real processes against one with twice the batch, for every encoder family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import train_families
from forked import run_together

from flcache.encoder.families import FAMILIES


def losses(folder: Path, processes: int) -> dict[str, list[float]]:
    folder.mkdir()
    results = run_together(train_families.main, *[(folder,)] * processes)
    assert not any(result.returncode for result in results), "".join(result.stderr for result in results)
    found: dict[str, list[float]] = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
    return found


def test_every_family_trains_in_two_processes_as_in_one(tmp_path: Path) -> None:
    """Parameters that no latent depends on would stop the second step of two. Clips a second are of all processes."""
    one, two = losses(tmp_path / "one", 1), losses(tmp_path / "two", 2)
    assert {name.split(",")[0] for name in one} == {
        *FAMILIES,
        *train_families.LEADING_TOKENS,
    } and one.keys() == two.keys()
    for name, expected in one.items():
        assert expected[0] != expected[1] and two[name] == pytest.approx(expected, rel=1e-4), name
