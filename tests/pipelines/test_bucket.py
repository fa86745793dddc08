"""Encoding into a bucket and training from it, over a road that loses, cuts and spoils: as on a local disk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from forked import Forked, command_line
from trees import tree
from watched import held_bytes

from flcache.cache import verify_cache
from flcache.cache.storage import open_store
from flcache.config import load_config
from flcache.training import read_metrics

LOCAL_BYTES = 150_000
"""Room for three of the five shards."""


def in_bucket(bucket: str) -> dict[str, bytes]:
    """The files of a cache as they lie there; read twice, since the road spoils some."""
    store = open_store(bucket).direct()
    return {name: store.read(name, 2**30) for name in store.names()}


def losses(directory: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(directory / "metrics.jsonl")]


def test_what_is_encoded_and_trained_is_that_of_a_local_disk(
    encoded: Path, trained: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flcache.pipelines import encode, evaluate, inspect_cache, report

    local = tmp_path / "local"
    settings = [f"cache.dir={bucket}", f"cache.local_dir={local}", f"cache.local_bytes={LOCAL_BYTES}"]
    encode.run(load_config(encoded, settings))
    assert in_bucket(bucket) == tree(Path(str(load_config(encoded).cache.dir)))
    folders = [tmp_path / name / "training" for name in ("one", "two")]
    runs = [Forked(command_line, "train", "--config", encoded, *settings, f"training.dir={it}") for it in folders]
    most = 0
    while any(run.is_running() for run in runs):
        most = max(most, held_bytes(local))
        time.sleep(0.005)
    for run, folder in zip(runs, folders, strict=True):
        assert (done := run.wait()).returncode == 0, done.stderr
        assert losses(folder) == losses(trained) and "set training.shuffle_block=" in done.stderr
    assert 0 < most <= LOCAL_BYTES
    assert verify_cache(bucket).ok
    evaluate.run(load_config(encoded, [*settings, f"training.dir={folders[0]}"]))
    report.run(folders[0])
    capsys.readouterr()
    inspect_cache.run(bucket)
    assert capsys.readouterr().out.startswith(f"{bucket}: flc1, ")
