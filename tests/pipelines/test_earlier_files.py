"""Caches and a checkpoint written by commit b98e9e3: today's code opens, verifies, repairs, trains on, evaluates them.

Floats are equal bit by bit on the torch and CPU instructions that computed the stored ones, and nearly so elsewhere.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from trees import tree

from flcache.cache import LatentCache, read_plan
from flcache.config import Config, load_config
from flcache.pipelines import encode, evaluate, repair, train, verify
from flcache.training import read_metrics
from flcache.videos import planned_clips

STORED = Path(__file__).parent.parent / "fixtures" / "b98e9e3"
MACHINE = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
SAME_MACHINE = json.loads((STORED / "machine.json").read_text(encoding="utf-8")) == MACHINE
COMPUTED = ("loss", "loss/prediction", "loss/copy_last", "gradient_norm", "learning_rate")
"""Metrics that do not depend on time."""


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stored folder, as the current one: its configuration has relative paths."""
    folder = tmp_path / "earlier"
    shutil.copytree(STORED, folder)
    monkeypatch.chdir(folder)
    return folder


def configured(*overrides: str) -> Config:
    return load_config("config.yaml", overrides)


def assert_equal(found: Any, stored: Any) -> None:
    """Every stored figure again: the same bits on the same machine, 1e-4 relative elsewhere."""
    if SAME_MACHINE:
        assert found == stored
    else:
        assert found == pytest.approx(stored, rel=1e-4)


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_a_cache_opens_verifies_and_is_not_encoded_again(
    earlier: Path, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, plan = tree(earlier / codec), read_plan(earlier / codec)
    verify.run(earlier / codec, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["clips"] == 9 and found["missing"] == []
    assert len(LatentCache(earlier / codec)) == 9
    encode.run(configured(f"cache.dir={codec}", f"cache.codec={codec}"))
    after = tree(earlier / codec)
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == {"plan.parquet"}
    pd.testing.assert_frame_equal(read_plan(earlier / codec), plan)  # it has gained what it was made from, no more
    encode.run(configured(f"cache.dir={codec}", f"cache.codec={codec}"))
    assert tree(earlier / codec) == after


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_a_stored_failure_and_the_plan_read_as_those_of_today(earlier: Path, codec: str) -> None:
    (failure,) = LatentCache(earlier / codec).failures()
    assert (failure.stage, failure.reason, failure.attempts) == ("decode", "unknown", 1)
    assert "moov atom not found" in failure.message
    clips = planned_clips(read_plan(earlier / codec))
    assert len(clips) == 10
    for clip in clips:
        assert (clip.request.frames, clip.request.stride, clip.request.short) == (8, None, "pad")


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_a_shard_with_a_stored_failure_is_repaired(
    earlier: Path, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Today says in other words why the clip failed."""
    (failures,) = (earlier / codec / "failures").glob("*.jsonl")
    idx = earlier / codec / "shards" / f"{failures.stem}.idx"
    whole = idx.read_bytes()
    idx.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    if not SAME_MACHINE:
        (earlier / codec / "commits" / f"{failures.stem}.json").unlink()
    repair.run(earlier / codec, configured(f"cache.codec={codec}"))
    if SAME_MACHINE:
        assert f"{failures.stem}: encoded anew, equal to what was committed" in capsys.readouterr().out
        assert idx.read_bytes() == whole
    assert [failure.reason for failure in LatentCache(earlier / codec).failures()] == ["cut off"]


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_a_damaged_cache_is_repaired(earlier: Path, codec: str, capsys: pytest.CaptureFixture[str]) -> None:
    tar = earlier / codec / "shards" / "train-000000.tar"
    whole, latents = tar.read_bytes(), torch.from_numpy(LatentCache(earlier / codec)[0].latents)
    tar.write_bytes(whole[:6000] + bytes([whole[6000] ^ 1]) + whole[6001:])
    if not SAME_MACHINE:  # what is encoded there has other bits, which the commit would refuse
        (earlier / codec / "commits" / "train-000000.json").unlink()
    repair.run(earlier / codec, configured(f"cache.codec={codec}"))
    printed = capsys.readouterr().out
    if SAME_MACHINE:
        assert "train-000000: encoded anew, equal to what was committed" in printed
        assert tar.read_bytes() == whole
    again = torch.from_numpy(LatentCache(earlier / codec)[0].latents)
    torch.testing.assert_close(again, latents, rtol=1e-2, atol=1e-2)  # the codecs' own precision


def test_a_checkpoint_resumes_as_it_did_then(earlier: Path) -> None:
    train.run(configured("training.steps=6"), resume=True)
    stored, found = read_metrics(earlier / "continued.jsonl"), read_metrics(earlier / "training" / "metrics.jsonl")
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    for name in COMPUTED:
        assert_equal([line[name] for line in found], [line[name] for line in stored])


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_a_run_starts_anew_on_a_stored_cache(earlier: Path, codec: str) -> None:
    train.run(configured(f"cache.dir={codec}", "training.dir=anew"))
    found = read_metrics(earlier / "anew" / "metrics.jsonl")
    assert found[0]["loss"] == found[0]["loss/copy_last"] > 0
    if codec == "float16":
        stored = read_metrics(earlier / "training" / "metrics.jsonl")
        assert_equal([line["loss"] for line in found], [line["loss"] for line in stored])


def test_a_checkpoint_evaluates_to_the_same_figures(earlier: Path) -> None:
    stored = json.loads((earlier / "training" / "evaluation.json").read_text(encoding="utf-8"))
    evaluate.run(configured())
    found = json.loads((earlier / "training" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["fingerprint"] == stored["fingerprint"] and found["leak"] is False
    assert [row["clips"] for row in found["horizons"]] == [row["clips"] for row in stored["horizons"]] == [3, 3]
    for now, then in zip(found["horizons"], stored["horizons"], strict=True):
        for name in ("seconds", "error", "l1", "cosine"):
            assert_equal(now[name], then[name])
        unchanged = set(then["skill"]) - {"ridge"}  # a map for each horizon since
        assert unchanged and set(now["skill"]) == set(then["skill"])
        assert_equal(*({name: row["skill"][name] for name in unchanged} for row in (now, then)))
