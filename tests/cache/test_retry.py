"""A clip that failed joins its committed shard, whose other clips keep their bytes, whatever is killed when."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import run_forked
from small_cache import clip_arrays, encoded_clip, make_cache
from trees import tree

from flcache.cache import (
    Failure,
    LatentCache,
    RetryWriter,
    ShardWriter,
    finalize_statistics,
    read_plan,
    read_spec,
    settle,
    verify_cache,
)
from flcache.cache.storage import LocalStore
from flcache.cache.storage.local import TemporaryFile
from flcache.errors import DamagedError

SIZES = {"num_train": 9, "num_val": 2}
CODECS = ("float16", "bfloat16", "int8")
SHARD = ("train", 0)


def row_that_failed(cache_dir: Path) -> Any:
    return next(read_plan(cache_dir).query("split == 'train' and shard == 0 and slot == 1").itertuples())


def retry(cache_dir: Path, *, fails: bool = False) -> None:
    row, spec = row_that_failed(cache_dir), read_spec(cache_dir)
    with RetryWriter(cache_dir, *SHARD, spec) as writer:
        if fails:
            writer.fail(Failure(row.clip_id, row.slot, row.video, "decode", "cut off", "moov atom not found", 1))
        else:
            writer.add(encoded_clip(row, arrays=clip_arrays(row.clip_id, spec)))
        writer.commit()


def written_at_once(cache_dir: Path, folder: Path) -> dict[str, bytes]:
    """The files of the shard as they are where nothing fails."""
    shutil.copytree(cache_dir, folder)
    LocalStore(folder).remove("commits/train-000000.json")
    rows = read_plan(folder).query("split == 'train' and shard == 0")
    spec = read_spec(folder)
    with ShardWriter(folder, *SHARD, spec) as writer:
        for row in rows.itertuples():
            valid_steps = 2 if row.slot == len(rows) - 1 else 4
            writer.add(encoded_clip(row, valid_steps=valid_steps, arrays=clip_arrays(row.clip_id, spec)))
        writer.commit()
    return {name: content for name, content in tree(folder).items() if name.startswith("shards/train-000000")}


@pytest.mark.parametrize("arrays", [None, {"actions": 3, "states": 1}], ids=["alone", "arrays"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_shard_is_as_if_nothing_had_failed(codec: str, arrays: dict[str, int] | None, tmp_path: Path) -> None:
    cache_dir = make_cache(tmp_path / "cache", codec=codec, arrays=arrays, **SIZES)
    expected = written_at_once(cache_dir, tmp_path / "other")
    before, old = tree(cache_dir), LatentCache(cache_dir, "train")
    retry(cache_dir)
    after, new = tree(cache_dir), LatentCache(cache_dir, "train")
    assert {name: after[name] for name in expected} == expected
    assert set(before) - set(after) == {"failures/train-000000.jsonl"} and not set(after) - set(before)
    assert len(new) == len(old) + 1 and not new.failures() and verify_cache(cache_dir).ok
    assert new.commits[0].fidelity is not None and old.commits[0].fidelity is not None
    assert new.commits[0].fidelity.vectors == old.commits[0].fidelity.vectors * 5 // 4
    stale = read_spec(cache_dir).channels
    finalize_statistics(cache_dir)
    assert stale is not None and stale != read_spec(cache_dir).channels == new._merged_channels


def test_a_clip_that_fails_again_changes_no_byte(tmp_path: Path) -> None:
    cache_dir = make_cache(tmp_path / "cache", **SIZES)
    before = tree(cache_dir)
    retry(cache_dir, fails=True)
    assert tree(cache_dir) == before
    with RetryWriter(cache_dir, *SHARD, read_spec(cache_dir)) as writer:
        writer.add(encoded_clip(row_that_failed(cache_dir)))  # and no commit
    assert tree(cache_dir) == before


def test_a_clip_that_another_run_has_stored_stays(tmp_path: Path) -> None:
    cache_dir = make_cache(tmp_path / "cache", **SIZES)
    retry(cache_dir)
    before = tree(cache_dir)
    retry(cache_dir)
    retry(cache_dir, fails=True)
    assert tree(cache_dir) == before


def test_damaged_clips_are_not_kept_as_if_they_were_whole(tmp_path: Path) -> None:
    cache_dir = make_cache(tmp_path / "cache", **SIZES)
    path, place = (
        cache_dir / "shards/train-000000.tar",
        LatentCache(cache_dir, "train").reader(0).rows["payloads"][0, 0],
    )
    content = bytearray(path.read_bytes())
    content[int(place["offset"])] ^= 1
    path.write_bytes(content)
    before = tree(cache_dir)
    with pytest.raises(DamagedError, match="are not as written"):
        retry(cache_dir)
    assert tree(cache_dir) == before


def retry_killed(cache_dir: Path, at: int) -> None:
    """Killed before the change number `at` of a file, or whole."""
    changes = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return change

    for kind, name in ((LocalStore, "move"), (LocalStore, "remove"), (TemporaryFile, "publish")):
        setattr(kind, name, counted(getattr(kind, name)))
    retry(cache_dir)


def kill_everywhere(folder: Path) -> None:
    """In a copy of `start` for each change of a file, until one run is not killed."""
    for at in range(1, 99):
        shutil.copytree(folder / "start", folder / str(at))
        child = os.fork()
        if not child:
            retry_killed(folder / str(at), at)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


def test_a_kill_at_any_moment_leaves_the_old_shard_the_new_one_or_none(tmp_path: Path) -> None:
    start = make_cache(tmp_path / "start", **SIZES)
    result = run_forked(kill_everywhere, tmp_path)
    assert result.returncode == 0, result.stderr
    last = max(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    old, whole, found = tree(start), tree(tmp_path / str(last)), []
    assert len(LatentCache(tmp_path / str(last), "train")) == SIZES["num_train"]
    for at in range(1, last):
        cache_dir = tmp_path / str(at)
        cache, verified = LatentCache(cache_dir, "train"), verify_cache(cache_dir)
        assert verified.ok, (at, verified)
        found.append(len(cache))
        assert [cache[index].clip_id for index in range(len(cache))] == list(cache.ids)
        settle(cache_dir)
        left = {name: content for name, content in tree(cache_dir).items() if not name.endswith(".tmp")}
        assert left in (old, whole), at
        retry(cache_dir)
        assert tree(cache_dir) == whole, at
    clips = SIZES["num_train"]
    assert last > 8 and set(found) == {clips - 1, clips - 5}, found
