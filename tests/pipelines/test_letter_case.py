"""Names of videos that differ in letter case, from annotation to cache."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from flcache.cache import LatentCache
from flcache.config import load_config
from flcache.pipelines import encode


def test_a_missing_video_never_gets_the_file_of_another(
    config_file: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ABC` is on disk, `abc` is not, and `Xyz` is as `xYZ`: the first and the last are cached."""
    source, *_ = sorted(videos.rglob("t*.mp4"))
    root = tmp_path / "cased"
    (root / "bike").mkdir(parents=True)
    for name in ("ABC", "xYZ"):
        (root / "bike" / f"{name}_000000_000002.mp4").write_bytes(source.read_bytes())
    with (root / "train.csv").open("w", newline="") as stream:
        rows = [("label", "youtube_id", "time_start", "time_end", "split")]
        csv.writer(stream).writerows([*rows, *(("bike", name, 0, 2, "train") for name in ("ABC", "abc", "Xyz"))])
    overrides = [f"dataset.root={root}", f"dataset.train={root}/train.csv", "dataset.val=null"]
    encode.run(load_config(config_file, [*overrides, "dataset.max_missing_fraction=0.5"]))
    cache = LatentCache(str(load_config(config_file).cache.dir))
    assert sorted(cache.ids) == ["ABC_000000_000002-0", "Xyz_000000_000002-0"]
    assert [(failure.clip_id, failure.reason) for failure in cache.failures()] == [("abc_000000_000002-0", "no file")]
    assert "1 files are taken though their names differ in case" in capsys.readouterr().err
