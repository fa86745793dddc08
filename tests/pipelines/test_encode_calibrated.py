"""Encoding that needs a calibration: once, the same every time, and refused where it is too rough."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trees import tree

from flcache.cache import LatentCache
from flcache.config import Config, load_config
from flcache.errors import CacheError
from flcache.pipelines import audit, encode
from flcache.videos import write_dataset


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_dataset(folder, train_videos=10, val_videos=2)
    return folder


def configured(videos: Path, cache_dir: Path, *overrides: str) -> Config:
    dataset = [f"dataset.root={videos}", f"dataset.train={videos}/train.csv", f"dataset.val={videos}/val.csv"]
    return load_config("demo", [*dataset, f"cache.dir={cache_dir}", "encode.decode_workers=1", *overrides])


def run(videos: Path, cache_dir: Path, *overrides: str) -> LatentCache:
    encode.run(configured(videos, cache_dir, *overrides))
    return LatentCache(cache_dir)


def test_int8_is_calibrated_once_and_the_same_every_time(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(videos, tmp_path / "float32", "cache.codec=float32")
    assert "Calibrating" not in capsys.readouterr().err
    options = ("cache.codec=int8", "cache.min_cosine=0.999")
    cache = run(videos, tmp_path / "int8", *options)
    assert "Calibrating" in capsys.readouterr().err
    constants = cache.spec.hard["calibration"]
    assert constants["clips"] == 10
    np.testing.assert_allclose(constants["mean"], whole.statistics().mean.numpy(), atol=1e-6)
    np.testing.assert_allclose(constants["std"], whole.statistics().std.numpy(), rtol=1e-5)
    for clip, original in zip(cache, whole, strict=True):
        error = np.linalg.norm(clip.latents - original.latents) / np.linalg.norm(original.latents)
        assert clip.clip_id == original.clip_id and 0 < error < 0.01

    (tmp_path / "int8" / "commits" / "val-000000.json").unlink()
    run(videos, tmp_path / "int8", *options)
    assert "Calibrating" not in capsys.readouterr().err
    run(videos, tmp_path / "again", *options)
    assert tree(tmp_path / "int8") == tree(tmp_path / "again")


def test_components_of_means_are_kept(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("cache.codec=int8", "encode.keep.pool=true", "encode.keep.pca=24")
    cache = run(videos, tmp_path, *options)
    assert cache.latent_shape == (16, 2, 2, 24) and cache.spec.encoder_shape == (16, 4, 4, 64)
    assert all(commit.fidelity.relative_l2 < 0.01 < commit.keep_fidelity.relative_l2 for commit in cache.commits)
    capsys.readouterr()
    audit.run(tmp_path, configured(videos, tmp_path, *options), clips=3, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["clips"] == 3 and found["distance_to_cache"] < 1e-3


def test_too_rough_stops_the_run(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"train-000000\.tar: clip .* as bfloat16 .* cache\.min_cosine=1"):
        run(videos, tmp_path, "cache.codec=bfloat16", "cache.min_cosine=1.0")
    assert not list(tmp_path.glob("commits/*"))
