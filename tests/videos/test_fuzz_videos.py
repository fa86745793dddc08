"""A few mutations of good videos in every run of the suite; `fuzz_videos.py` makes as many as it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz_videos import Watch, fuzz, mutate

from flcache.videos import ClipRequest, DecodePool

VIDEOS = (
    {"name": "late_index.mp4", "options": {"g": "6", "bf": "2"}},
    {"name": "plain.mkv", "options": {"g": "6", "bf": "0"}},
    {"name": "vp9.webm", "codec": "libvpx-vp9", "options": {"g": "6", "deadline": "realtime", "cpu-used": "8"}},
    {"name": "mpeg4.avi", "codec": "mpeg4", "options": {"g": "6"}},
    {"name": "stream.ts", "options": {"g": "6", "bf": "0"}},
)


@pytest.mark.skipif(sys.platform != "linux", reason="open files are read from /proc")
def test_mutated_videos_give_exact_pixels_or_a_reason(write_video: Callable[..., Path], tmp_path: Path) -> None:
    videos = [write_video(**video) for video in VIDEOS]  # type: ignore[arg-type]
    folder = tmp_path / "mutations"
    folder.mkdir()
    findings = fuzz(videos, folder, 40, 0)
    assert findings.wrong == [] and findings.outcomes.total() == 2 * 40
    assert sum(findings.outcomes[f"clip by {decoder}"] for decoder in ("decord", "pyav")) > 5
    assert sum(times for outcome, times in findings.outcomes.items() if outcome.startswith("failed")) > 5


def test_mutations_differ_and_are_the_same_again() -> None:
    content = bytes(range(256)) * 20
    made = [mutate(content, [content[::-1]], np.random.default_rng(seed)) for seed in range(40)]
    assert made == [mutate(content, [content[::-1]], np.random.default_rng(seed)) for seed in range(40)]
    assert len(set(made)) > 35 and content not in made


@pytest.mark.skipif(sys.platform != "linux", reason="open files are read from /proc")
def test_the_watch_sees_a_file_that_nobody_allowed(write_video: Callable[..., Path], tmp_path: Path) -> None:
    path, allowed = write_video(), tmp_path / "elsewhere"
    request = ClipRequest(1, 0.0, None, 1, "pad")
    with DecodePool(1, 60) as pool, Watch(pool, allowed) as watch:
        for _ in pool.decode((k, path, request) for k in range(150)):
            pass
    assert str(path) in watch.foreign
