"""`flcache bench loader`: every loader is measured in a process of its own, on a cache of one's own or on noise."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from small_run import flcache

from flcache.cache import CacheWriter
from flcache.config import load_config
from flcache.errors import CacheError, DataError
from flcache.pipelines import bench
from flcache.pipelines.bench import encode
from flcache.pipelines.cli import cli
from flcache.pipelines.setup import timing


def write_cache(path: Path, clips: int) -> Path:
    latents = np.random.default_rng(0).standard_normal((clips, 4, 4, 4, 16), dtype=np.float32)
    writer = CacheWriter(path, latents.shape[1:], codec="float16", spec={"encoder": "noise"}, context="step")
    writer.write("train", [f"clip-{number:03d}" for number in range(clips)], latents)
    return path


def test_all_loaders_are_measured_on_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = write_cache(tmp_path / "cache", 64)
    before = sorted(tmp_path.rglob("*"))
    result = flcache("bench", "loader", str(cache), "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["clips_per_s"] > 0 and found["clips_per_s_verified"] > 0 and found["clips_per_s_2_steps"] > 0
    assert found["clips_per_s_standardised"] > 0 and found["ring_clips_per_s"] > 0
    assert found["rivals"]["webdataset"] > 0
    assert found["clips_per_s_standardised_int8"] is None, "the cache has one codec"
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_a_cache_that_is_too_small_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CacheError, match="8 training clips in float16; a measurement wants at least 32"):
        bench.run(write_cache(tmp_path / "cache", 8))


def test_encoding_is_measured_with_a_stand_in(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = encode.run(load_config(config_file), own_videos=False, stand_in=200.0, as_json=True, clips=24)
    assert found.decode_s > 0 and found.store_s > 0 and found.encode_s == pytest.approx(1 / 200, rel=0.3)
    assert found.clips_per_s > 0 and found.limit_clips_per_s <= 1 / found.encode_s + 1e-6
    assert 0 < found.busy <= 1 and found.held_back_by in ("decode", "encode", "store")
    assert not list(tmp_path.glob("flcache-bench-*")), "nothing is left behind"


def test_encoding_is_measured_with_the_configured_encoder(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command line, in a codec that is calibrated first."""
    monkeypatch.chdir(tmp_path)
    result = flcache("bench", "encode", "--config", config_file, "cache.codec=int8", "--json")
    assert result.returncode == 0, result.stderr
    keys = {"decode_s", "encode_s", "store_s", "limit_clips_per_s", "clips_per_s", "busy", "held_back_by"}
    assert set(json.loads(result.stdout)) == keys


def test_training_is_measured_from_each_source(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = flcache("bench", "train", "--config", config_file, "--steps", "4", "--json", "training.validate_every=2")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert list(found) == ["cache", "frozen", "unfrozen"]
    for measured in found.values():
        assert measured["clips_per_s"] == pytest.approx(4 * measured["steps_per_s"]) and measured["steps_per_s"] > 0
        assert 0 <= measured["data_wait_fraction"] <= 1 and 50 < measured["peak_mb"] < 20_000
    assert not list(tmp_path.glob("flcache-bench-*")), "nothing is left behind"


def test_hours_of_a_configuration_are_measured(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From one source, to be quick: `flcache bench train` above takes the same way with all three."""
    monkeypatch.chdir(tmp_path)
    before, all_sources = sorted(tmp_path.iterdir()), timing.sources
    monkeypatch.setattr(timing, "sources", lambda config: islice(all_sources(config), 1))
    cli(["inspect-config", "--measure", "--config", str(config_file)], standalone_mode=False)
    encode, cache, frozen, unfrozen, paid = capsys.readouterr().out.partition("Cost\n")[2].splitlines()[:5]
    assert all(0 < float(line.split()[-2]) < 0.1 and line.endswith(" h") for line in (encode, cache)), (encode, cache)
    assert frozen.endswith("stores nothing") and unfrozen.endswith("trains") and "not every source" in paid
    assert sorted(tmp_path.iterdir()) == before, "nothing is left behind"


def test_a_training_that_fails_says_why(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo Notice: some; echo 'Error: 24 clips are too few' >&2; exit 1"]
    with pytest.raises(DataError, match=rf"training from {tmp_path.name} failed: 24 clips are too few"):
        timing._peak_bytes(command, tmp_path)


def test_an_interpreter_of_rivals_that_does_not_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--rivals /nowhere/python: No such file or directory; give the interpreter"):
        bench.run(None, rivals="/nowhere/python")
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no module >&2; exit 3\n", encoding="utf-8")
    broken.chmod(0o755)
    with pytest.raises(DataError, match="failed: no module"):
        bench.run(None, rivals=str(broken))
