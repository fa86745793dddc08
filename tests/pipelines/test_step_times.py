"""The times of steps: evenly spaced whatever the video shows, and of the kind that a cache began with."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_run import small_config
from trees import tree

from flcache.cache import LatentCache, create_or_check, make_spec, without_times
from flcache.config import Config, load_config
from flcache.pipelines import encode, evaluate, repair, train
from flcache.pipelines.setup.source import Reading, open_source
from flcache.videos import write_dataset


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A configuration of clips of 8 frames a second over videos of 2."""
    videos = tmp_path / "videos"
    write_dataset(videos, train_videos=8, val_videos=4, frames=8, size=32, fps=2)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(videos, tmp_path)), encoding="utf-8")
    return path


def displayed(cache: LatentCache) -> list[list[float]]:
    """Seconds at which the frames of every clip of the first shard came on display, from its JSON."""
    with tarfile.open(cache.path / "shards" / "train-000000.tar") as tar:
        members = [member for member in tar if member.name.endswith(".json")]
        return [json.load(tar.extractfile(member))["timestamps"] for member in members]  # type: ignore[arg-type]


def times(cache: LatentCache) -> np.ndarray:
    return np.stack([cache[index].times for index in range(len(cache))])


def test_steps_of_a_slow_video_have_the_times_that_were_sampled(slow: Path) -> None:
    encode.run(load_config(slow))
    cache = LatentCache(str(load_config(slow).cache.dir))
    assert all(len(set(seconds)) < 4 for seconds in displayed(cache)), "two pictures a second, eight frames"
    np.testing.assert_allclose(times(cache), np.tile(np.arange(4) / 4 + 1 / 16, (len(cache), 1)), atol=1e-5)


def test_a_cache_of_before_keeps_the_times_on_display(slow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Encoded in two parts, repaired, and read live: all as the first writer would have done."""
    config = load_config(slow)
    encode.run(load_config(slow, [f"cache.dir={slow.parent / 'now'}"]))
    hard = without_times(LatentCache(slow.parent / "now").spec.hard)
    location = Path(str(config.cache.dir))
    create_or_check(location, hard, {})
    for part in (0, 1):
        encode.run(config, shards=(part, 2))
    cache = LatentCache(location)
    assert cache.fingerprint == make_spec(hard).fingerprint
    assert (np.diff(times(cache), axis=1) == 0).any(axis=1).all()
    np.testing.assert_allclose(
        times(cache)[: len(displayed(cache))],
        [np.subtract(seconds, seconds[0]).reshape(4, 2).mean(1) for seconds in displayed(cache)],
        atol=1e-6,
    )
    before = tree(location)
    for name in ("shards/train-000000.tar", "shards/train-000000.idx", "spec.json"):
        (location / name).write_bytes(before[name][:-9])
    repair.run(location, config)
    assert "train-000000: encoded anew, equal to what was committed" in capsys.readouterr().out
    after = tree(location)
    assert {name: after[name] for name in after if name != "spec.json"} == {
        name: before[name] for name in before if name != "spec.json"
    }
    assert_live_equals_cached(load_config(slow, ["training.source=videos"]), config)


def test_live_steps_have_the_times_of_cached_ones(slow: Path) -> None:
    encode.run(load_config(slow))
    assert_live_equals_cached(load_config(slow, ["training.source=videos"]), load_config(slow))


def assert_live_equals_cached(live: Config, cached: Config) -> None:
    read = []
    for config in (live, cached):
        with open_source(config, Reading("val", 4, shuffle=False), device="cpu") as source:
            read.append(torch.cat([batch.times for batch in source.batches]))
    torch.testing.assert_close(read[0], read[1], atol=1e-6, rtol=0)


def test_a_checkpoint_of_a_cache_of_before_is_evaluated_on_a_new_one(slow: Path) -> None:
    encode.run(load_config(slow, [f"cache.dir={slow.parent / 'now'}"]))
    create_or_check(
        Path(str(load_config(slow).cache.dir)), without_times(LatentCache(slow.parent / "now").spec.hard), {}
    )
    encode.run(load_config(slow))
    train.run(load_config(slow))
    evaluate.run(load_config(slow, [f"cache.dir={slow.parent / 'now'}"]))
    found = json.loads((slow.parent / "training" / "evaluation.json").read_text(encoding="utf-8"))
    assert all(row["skill"]["linear"] is not None for row in found["horizons"])
