"""A pipe under the name of a file of a cache must make nobody wait: whatever looks at it says so, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_cache import clip_table, hard_spec, make_cache
from trees import tree

from flcache.cache import assign_shards, create_or_check, write_plan
from flcache.errors import CacheError, DamagedError

LOOKS = """
import sys
from flcache.cache import LatentCache, LatentLoader, summary, verify_cache
from flcache.errors import CacheError

def verified(where):
    if damaged := verify_cache(where).damaged:
        raise CacheError(damaged[0].problem)

def read(where):
    cache = LatentCache(where)
    return [cache.failures(), [cache[index] for index in range(len(cache))]]

def load(where):
    return list(LatentLoader(LatentCache(where, "train"), batch_size=4, context_steps=1))

for where in sys.argv[1:]:
    for look in (verified, read, load, summary):
        try:
            look(where)
            print(where, look.__name__, "fine", flush=True)
        except CacheError as error:
            print(where, look.__name__, "refused", error, flush=True)
"""
FILES = (
    "spec.json",
    "plan.parquet",
    "shards/train-000000.tar",
    "shards/train-000000.idx",
    "commits/train-000000.json",
    "failures/train-000000.jsonl",
)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def test_verify_and_readers_end(tmp_path: Path) -> None:
    caches = [make_cache(tmp_path / str(number)) for number, _ in enumerate(FILES)]
    assert set(FILES) <= set(tree(caches[0]))
    for cache, file in zip(caches, FILES, strict=True):
        replace_by_pipe(cache / file)
    program = [sys.executable, "-c", LOOKS, *map(str, caches)]
    result = subprocess.run(program, capture_output=True, text=True, timeout=300, check=True)
    outcomes = [line.split()[:3] for line in result.stdout.splitlines()]
    assert len(outcomes) == 4 * len(FILES)
    assert all([str(cache), "verified", "refused"] in outcomes for cache in caches), result.stdout


def test_encoding_into_a_pipe_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path)
    for file in ("spec.json", "plan.parquet"):
        replace_by_pipe(tmp_path / file)
    with pytest.raises(DamagedError, match=r"spec\.json: no plain file"):
        create_or_check(tmp_path, hard_spec(), {})
    with pytest.raises(CacheError, match=r"plan\.parquet: no plain file"):
        write_plan(tmp_path, assign_shards(clip_table(3), "train", clip_bytes=1, shard_bytes=5, seed=0))


def test_a_pipe_as_a_leftover_or_a_lock_holds_nobody_up(tmp_path: Path) -> None:
    whole = tree(make_cache(tmp_path / "whole"))
    shards = tmp_path / "cache" / "shards"
    shards.mkdir(parents=True)
    for name in (".train-000000.tar.0123abcd.tmp", ".train-000000.tar.lock.tmp"):
        os.mkfifo(shards / name)
    assert tree(make_cache(tmp_path / "cache")) == whole
