"""Fixtures shared by all tests: real videos where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """Real good, odd and bad videos with Kinetics annotations; skips where the folder is absent."""
    folder = REPOSITORY.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip("no ../shared/videos beside the checkout")
    return folder
