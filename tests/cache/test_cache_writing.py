"""A cache is whole or absent: same bytes every time, killed at any moment, on a full disk, without permission."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
from small_cache import SHAPE, encoded_clip, fill_cache, hard_spec, make_cache, plan_cache
from trees import tree

from flcache.cache import (
    EncodedClip,
    Failure,
    LatentCache,
    ShardBusy,
    ShardWriter,
    ValueRangeError,
    get_codec,
    make_spec,
    read_plan,
)
from flcache.cache.format.names import shard_files
from flcache.cache.storage import LocalStore
from flcache.errors import CacheError

LARGER = (4, 8, 8, 64)

# Forks a writer for every line it reads, so that a kill costs a fork and not an interpreter.
NURSERY = """
import os, signal, sys, time
from pathlib import Path
from small_cache import make_cache
for line in sys.stdin:
    kill_after_s, cache_dir = line.rstrip("\\n").split(" ", 1)
    child = os.fork()
    if not child:
        make_cache(Path(cache_dir), shape={shape})
        os._exit(0)
    if kill_after_s != "never":
        time.sleep(float(kill_after_s))
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """A process that makes a cache in a child of its own, which the test may kill."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def make_cache(self, cache_dir: Path, *, kill_after_s: float | None = None) -> int:
        """The child's exit code; negative is the signal that ended it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{'never' if kill_after_s is None else kill_after_s} {cache_dir}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    program = [sys.executable, "-c", NURSERY.format(shape=LARGER)]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Nursery(process)


def check_committed(cache_dir: Path, whole: dict[str, bytes]) -> None:
    """Every shard that has a commit is, byte for byte, the shard of the unkilled run."""
    found = tree(cache_dir)
    for commit in (name for name in found if name.startswith("commits/") and name.endswith(".json")):
        shard = f"shards/{Path(commit).stem}"
        for name in (commit, f"{shard}.tar", f"{shard}.idx"):
            assert found[name] == whole[name]


def test_killed_at_any_moment_then_rerun_equals_unkilled(tmp_path: Path, nursery: Nursery) -> None:
    assert nursery.make_cache(tmp_path / "warm-up") == 0
    start_s = time.monotonic()
    assert nursery.make_cache(tmp_path / "whole") == 0
    run_s = time.monotonic() - start_s
    whole = tree(tmp_path / "whole")
    moments = random.Random(0)
    kills = 0
    while kills < 14:
        cache_dir = tmp_path / f"killed-{kills}"
        for _ in range(2):
            exit_code = nursery.make_cache(cache_dir, kill_after_s=moments.uniform(0, run_s))
            assert exit_code in (0, -signal.SIGKILL)
            kills += exit_code != 0
            check_committed(cache_dir, whole)
        assert nursery.make_cache(cache_dir) == 0
        assert tree(cache_dir) == whole


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    first = tree(make_cache(tmp_path / "first"))
    assert first == tree(make_cache(tmp_path / "second"))
    assert {Path(name).suffix for name in first} == {".json", ".parquet", ".tar", ".idx", ".jsonl"}


def test_rerun_touches_nothing(tmp_path: Path) -> None:
    cache_dir = make_cache(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*")}
    make_cache(cache_dir)
    assert before == {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*")}


def test_tar_is_plain_ustar_in_slot_order(tmp_path: Path) -> None:
    cache_dir = make_cache(tmp_path)
    plan = read_plan(cache_dir).query("split == 'val' and shard == 0 and slot != 1")
    with tarfile.open(cache_dir / "shards" / "val-000000.tar") as tar:
        members = tar.getmembers()
    names = [f"{clip_id}.{kind}" for clip_id in plan["clip_id"] for kind in ("json", "latents.npy")]
    assert [member.name for member in members] == ["__flc__/fingerprint", *names, "__flc__/channels"]
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
        assert not member.pax_headers


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    spec = plan_cache(tmp_path)
    before = tree(tmp_path)
    row = next(read_plan(tmp_path).itertuples())
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, "train", 0, spec) as writer:
        writer.add(encoded_clip(row))
        raise KeyboardInterrupt
    assert tree(tmp_path) == before


def test_shard_of_failures_only(tmp_path: Path) -> None:
    spec = plan_cache(tmp_path, num_train=2, num_val=0)
    with ShardWriter(tmp_path, "train", 0, spec) as writer:
        for row in read_plan(tmp_path).itertuples():
            writer.fail(Failure(row.clip_id, row.slot, row.video, "decode", "cut off", "empty\nfile", 2))
        commit = writer.commit()
    assert (commit.clips, commit.failed, commit.positions) == (0, 2, 0)
    cache = LatentCache(tmp_path)
    assert len(cache) == 0 and [failure.message for failure in cache.failures()] == ["empty\nfile"] * 2
    with pytest.raises(CacheError, match="no train clip"):
        cache.statistics()


def test_commit_of_another_run_stands(tmp_path: Path) -> None:
    spec = plan_cache(tmp_path)
    row = next(read_plan(tmp_path).itertuples())
    with ExitStack() as both:
        first = both.enter_context(ShardWriter(tmp_path, "train", 0, spec))
        (tmp_path / "shards" / ".train-000000.tar.lock.tmp").unlink()  # as where a file system has no locks
        second = both.enter_context(ShardWriter(tmp_path, "train", 0, spec))
        for writer in (first, second):
            writer.add(encoded_clip(row))
        commit = first.commit()
        before = tree(tmp_path / "commits")
        assert second.commit() == commit
    assert tree(tmp_path / "commits") == before
    assert len(list(LatentCache(tmp_path))) == 1


SHARD_0 = """
import sys
from small_cache import write_shard
from flcache.cache import ShardWriter, read_plan, read_spec
where, hold = sys.argv[1:]
spec, plan = read_spec(where), read_plan(where)
if hold == "hold":
    with ShardWriter(where, "train", 0, spec):
        print("writing", flush=True)
        sys.stdin.read()
print("starting", flush=True)
write_shard(where, spec, "train", 0, plan[(plan["split"] == "train") & (plan["shard"] == 0)])
"""


def shard_0(cache_dir: Path, hold: str) -> subprocess.Popen[str]:
    """Another process that writes shard 0, or stays in the middle of it."""
    program = [sys.executable, "-c", SHARD_0, str(cache_dir), hold]
    search_path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    process = subprocess.Popen(
        program, stdin=PIPE, stdout=PIPE, text=True, env={**os.environ, "PYTHONPATH": search_path}
    )
    assert process.stdout and process.stdout.readline() in ("writing\n", "starting\n")
    return process


def test_a_shard_has_one_writer_until_that_one_ends_or_dies(tmp_path: Path) -> None:
    spec = plan_cache(tmp_path)
    commit = tmp_path / "commits" / "train-000000.json"
    with shard_0(tmp_path, "hold") as first, shard_0(tmp_path, "no") as second:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(timeout=1.5)
            assert not commit.exists()
            first.kill()
            assert second.wait(timeout=60) == 0 and commit.exists()
        finally:
            first.kill()
            second.kill()
    fill_cache(tmp_path, spec)
    assert tree(tmp_path) == tree(make_cache(tmp_path.with_name("whole")))


def test_a_busy_shard_is_told_at_once(tmp_path: Path) -> None:
    spec = plan_cache(tmp_path)
    with (
        ShardWriter(tmp_path, "train", 0, spec),
        ShardWriter(tmp_path, "train", 1, spec, wait=False),
        pytest.raises(ShardBusy, match=r"train-000000\.tar: another run is writing it"),
        ShardWriter(tmp_path, "train", 0, spec, wait=False),
    ):
        pass
    with ShardWriter(tmp_path, "train", 0, spec, wait=False) as writer:
        assert writer.committed is None


@pytest.mark.parametrize("name", shard_files("train", 1)[1:])
def test_a_rerun_removes_what_a_kill_left_of_a_committed_shard(tmp_path: Path, name: str) -> None:
    """A kill between the commit's two names, the last of a shard, leaves the first one."""
    spec = plan_cache(tmp_path)
    fill_cache(tmp_path, spec)
    whole = tree(tmp_path)
    final = tmp_path / name
    final.parent.mkdir(exist_ok=True)
    final.with_name(f".{final.name}.616af3e4.tmp").write_bytes(b"half")
    fill_cache(tmp_path, spec)
    assert tree(tmp_path) == whole


def test_only_leftovers_of_dead_writers_of_that_file_go(tmp_path: Path) -> None:
    spec = plan_cache(tmp_path)
    shards = tmp_path / "shards"
    with ShardWriter(tmp_path, "train", 0, spec):
        dead = [shards / ".train-000000.tar.0123abcd.tmp", shards / ".train-000001.tar.0123abcd.tmp"]
        for path in dead:
            path.touch()
        LocalStore(tmp_path).remove_leftovers("shards/train-000000.tar")
        assert [path.exists() for path in dead] == [False, True]
        assert len(list(shards.iterdir())) == 3, "the file of shard 1, the writer's and its lock"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e6, r"step 2, channel 5 is 1e\+06, beyond the largest float16 \(65504\); use .*float32"),
        (np.nan, "step 2, channel 5 is nan: .* not finite"),
    ],
)
def test_value_out_of_range_is_refused(tmp_path: Path, value: float, message: str) -> None:
    spec = plan_cache(tmp_path)
    row = next(read_plan(tmp_path).itertuples())
    clip = encoded_clip(row)
    clip.latents[2, 0, 1, 5] = value
    with ShardWriter(tmp_path, "train", 0, spec) as writer:
        with pytest.raises(ValueRangeError, match=f"clip {row.clip_id}: {message}"):
            writer.add(clip)
        writer.add(encoded_clip(row))
        assert writer.commit().clips == 1
    assert get_codec("float32").encode(np.full(SHAPE, 1e6, np.float32))


def test_clips_that_do_not_fit_the_spec_are_refused(tmp_path: Path) -> None:
    spec = make_spec(hard_spec())
    with ShardWriter(tmp_path, "train", 0, spec) as writer:

        def clip(clip_id: str = "video-0", slot: int = 3, shape: tuple[int, ...] = SHAPE) -> EncodedClip:
            latents = np.zeros(shape, np.float32)
            return EncodedClip(clip_id, slot, latents, [0.0] * 4, [0.0], [True], 4, None, "a.mp4", "av")

        with pytest.raises(CacheError, match=r"latents of \(4, 2, 2, 7\), the spec says \(4, 2, 2, 6\)"):
            writer.add(clip(shape=(4, 2, 2, 7)))
        for clip_id in ("a.b", "a/b", "", "..", "a b"):
            with pytest.raises(CacheError, match="clip id"):
                writer.add(clip(clip_id))
        with pytest.raises(CacheError, match="longer than 88 bytes"):
            writer.add(clip("x" * 89))
        writer.add(clip("x" * 88))
        with pytest.raises(CacheError, match="slot 3 comes after slot 3"):
            writer.add(clip())


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Writes beyond `num_bytes` of a file fail in this process, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit_bytes", [0, 300, 1000, 5_000, 20_000])
def test_failed_write_is_one_clear_line_and_leaves_nothing(tmp_path: Path, limit_bytes: int) -> None:
    whole = tree(make_cache(tmp_path / "whole"))
    cache_dir = tmp_path / "cache"
    spec = plan_cache(cache_dir)
    before = tree(cache_dir)
    with file_size_limit(limit_bytes), pytest.raises(CacheError, match="ulimit") as caught:
        fill_cache(cache_dir, spec)
    assert "\n" not in str(caught.value) and str(cache_dir) in str(caught.value)
    left = tree(cache_dir)
    assert not [name for name in left if name.endswith(".tmp")]
    assert {name: left[name] for name in before} == before
    check_committed(cache_dir, whole)
    fill_cache(cache_dir, spec)
    assert tree(cache_dir) == whole


def test_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("not allowed to mount a small disk")
    try:
        spec = plan_cache(disk / "cache")
        with pytest.raises(CacheError, match="the disk is full; free some space"):
            fill_cache(disk / "cache", spec)
        assert not [name for name in tree(disk) if name.endswith(".tmp")]
        assert [clip.split for clip in LatentCache(disk / "cache")]
    finally:
        subprocess.run(["umount", disk], check=True)


@contextmanager
def no_privileges() -> Iterator[None]:
    """Root may write anywhere: be nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("mode", [0o000, 0o555])
def test_no_permission_is_one_clear_line(tmp_path: Path, mode: int) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    spec = plan_cache(tmp_path / "cache")
    (tmp_path / "cache").chmod(mode)
    try:
        for write in (lambda: plan_cache(tmp_path / "new"), lambda: fill_cache(tmp_path / "cache", spec)):
            with no_privileges(), pytest.raises(CacheError, match="no permission") as caught:
                write()
            assert "\n" not in str(caught.value)
    finally:
        (tmp_path / "cache").chmod(0o755)


def test_file_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheError, match="a file lies where a folder is needed"):
        plan_cache(tmp_path / "cache")
    with pytest.raises(CacheError, match="a file lies where a folder is needed"):
        LocalStore(tmp_path / "cache").write("commits/file", b"")
