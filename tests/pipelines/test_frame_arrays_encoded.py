"""`dataset.arrays`: from `.npz` files beside the videos to batches of a cache and of live videos, and what fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
import yaml
from small_run import flcache, shards_of, small_config

from flcache.batch import LatentBatch, VideoBatch
from flcache.cache import LatentCache
from flcache.config import Config, load_config
from flcache.errors import ConfigError, DataError, SpecMismatch
from flcache.pipelines import encode
from flcache.pipelines.setup.source import Reading, open_source
from flcache.videos import write_dataset

FRAMES, FPS = 16, 8
"""Of a video; a clip takes every second frame of the first twelve or so."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and two validation videos with arrays; actions count frames, so that a mean says where it is."""
    root = tmp_path_factory.mktemp("videos")
    write_dataset(root, train_videos=8, val_videos=2, frames=FRAMES, size=32, fps=FPS)
    for number, path in enumerate(sorted(root.rglob("*.mp4"))):
        rows = 100 * number + np.arange(FRAMES)
        np.savez(path.with_suffix(".npz"), actions=np.stack([rows, -rows], axis=1), states=rows)
    return root


def configured(root: Path, folder: Path, *overrides: str) -> Config:
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(root, folder)), encoding="utf-8")
    return load_config(path, ["clip.frames=6", "clip.fps=4", "dataset.arrays=[states, actions]", *overrides])


@pytest.fixture(scope="module")
def encoded(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = configured(root, tmp_path_factory.mktemp("encoded"))
    encode.run(config)
    return config


def batches(config: Config, split: str) -> Iterator[LatentBatch | VideoBatch]:
    with open_source(config, Reading(split, 2, shuffle=True), device="cpu") as source:
        yield from source.batches


def test_each_step_has_the_rows_of_its_frames(encoded: Config, root: Path) -> None:
    cache = LatentCache(encoded.require("cache.dir"))
    assert cache.spec.arrays == {"actions": (3, 4), "states": (3, 2)} and not cache.failures() and len(cache) == 10
    assert cache.spec.hard["layout"]["arrays"] == {"actions": [3, 4], "states": [3, 2]}
    for clip, plan in zip(cache, cache.planned(range(len(cache))), strict=True):
        with np.load(next(root.rglob(f"{Path(clip.video).name}*.npz"))) as arrays:
            first = round(FPS * plan["timestamps"][0])
            states = arrays["states"][first : first + 12]
        np.testing.assert_array_equal(clip.arrays["states"], states[::2].reshape(3, 2))
        halves = states[:12].reshape(6, 2).mean(1) if len(states) == 12 else None
        assert halves is not None
        np.testing.assert_array_equal(clip.arrays["actions"], np.stack([halves, -halves], 1).reshape(3, 4))


def test_live_videos_give_the_same_batches_as_the_cache(encoded: Config) -> None:
    live = replace(encoded, training=replace(encoded.training, source="videos"))
    for split in ("train", "val"):
        pairs = list(zip(batches(encoded, split), batches(live, split), strict=True))
        assert len(pairs) > 0
        for cached, decoded in pairs:
            assert cached.ids == decoded.ids and isinstance(decoded, VideoBatch)
            assert set(cached.arrays) == set(decoded.arrays) == {"actions", "states"}
            assert all(torch.equal(cached.arrays[name], decoded.arrays[name]) for name in cached.arrays)
            assert torch.equal(cached.times, decoded.times)


def test_latents_are_those_of_a_cache_without_arrays_and_a_rerun_touches_nothing(
    encoded: Config, root: Path, tmp_path: Path
) -> None:
    plain = configured(root, tmp_path, "dataset.arrays=[]")
    encode.run(plain)
    for clip, other in zip(
        LatentCache(plain.require("cache.dir")), LatentCache(encoded.require("cache.dir")), strict=True
    ):
        assert clip.clip_id == other.clip_id and not clip.arrays
        np.testing.assert_array_equal(clip.latents, other.latents)
    before = shards_of(Path(encoded.require("cache.dir")))
    encode.run(encoded)
    assert shards_of(Path(encoded.require("cache.dir"))) == before
    with pytest.raises(SpecMismatch, match=r"layout\.arrays: cache has none"):
        encode.run(replace(plain, dataset=encoded.dataset))


def test_videos_whose_arrays_do_not_fit_fail_with_the_reason_until_they_are_mended(root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "videos")
    first, second, third, *_ = sorted(copy.rglob("t*.npz"))
    first.rename(first.with_suffix(".away"))
    np.savez(second, actions=np.zeros((FRAMES - 1, 2)), states=np.zeros(FRAMES))
    np.savez(third, actions=np.full((FRAMES, 2), np.inf), states=np.zeros(FRAMES))
    config = configured(copy, tmp_path / "run", "encode.max_failed_fraction=0.5")
    encode.run(config)
    failures = {failure.video: failure for failure in LatentCache(config.require("cache.dir")).failures()}
    assert {failure.reason for failure in failures.values()} == {"no arrays", "wrong arrays"} and len(failures) == 3
    assert any("has 15 rows, the video 16 frames on display" in failure.message for failure in failures.values())
    assert any("row 0 is not finite" in failure.message for failure in failures.values())
    shutil.copytree(root, copy, dirs_exist_ok=True)
    encode.run(config, retry_failed=True)
    cache = LatentCache(config.require("cache.dir"))
    assert not cache.failures() and len(cache) == 10


def test_arrays_in_tars_are_those_of_the_files(encoded: Config, root: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        with webdataset.TarWriter(str(tmp_path / f"{split}.tar")) as writer:
            for path in sorted(root.rglob(f"{split[0]}*.mp4")):
                content = {"mp4": path.read_bytes(), "npz": path.with_suffix(".npz").read_bytes()}
                writer.write({"__key__": path.stem, **content})
    tars = [f"dataset.{split}={tmp_path}/{split}.tar" for split in ("train", "val")]
    config = configured(root, tmp_path / "run", f"dataset.root={tmp_path}", *tars)
    encode.run(config)
    found = {Path(clip.video).stem: clip for clip in LatentCache(config.require("cache.dir"))}
    expected = LatentCache(encoded.require("cache.dir"))
    assert len(found) == len(expected) == 10
    for clip in expected:
        other = found[Path(clip.video).stem]
        assert all(np.array_equal(other.arrays[name], array) for name, array in clip.arrays.items())


def test_mistakes_are_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no video comes with dataset.arrays=\['force'\]; .*holds no array force"):
        encode.run(configured(root, tmp_path, "dataset.arrays=[force]"))
    with pytest.raises(ConfigError, match=r"dataset.arrays: 'a/b'"):
        configured(root, tmp_path, "dataset.arrays=[a/b]")
    configured(root, tmp_path)
    done = flcache("encode", "--config", tmp_path / "config.yaml", "dataset.arrays=[latents]", f"dataset.root={root}")
    assert done.returncode == 1 and "holds no array latents" in done.stderr
