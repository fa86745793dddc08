"""Files of a store on a local disk: checked, within the limit, shared by processes that may be killed."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forked import Forked, start_together
from watched import held_bytes

from flcache.errors import CacheError, DamagedError, RemoteError
from flcache.remote import DiskCache, RemoteFile, RemoteFiles, digest_of, is_url
from flcache.remote.disk import PARTIAL

KIB = 2**10


@pytest.fixture
def files(tmp_path: Path) -> RemoteFiles:
    """A store with eight files of 64 KiB, in a folder."""
    there = tmp_path / "there"
    there.mkdir()
    for number in range(8):
        (there / f"{number}.tar").write_bytes(bytes([number]) * 64 * KIB)
    return RemoteFiles(f"file://{there}")


def wanted(files: RemoteFiles, name: str) -> RemoteFile:
    entry = files.entry(name)
    assert entry is not None
    return RemoteFile(files, name, entry, digest_of(Path(files.url.removeprefix("file://")) / name).xxh3_64)


def content(cache: DiskCache, file: RemoteFile) -> bytes:
    with cache.open(file) as descriptor:
        assert os.path.samestat(os.fstat(descriptor), cache.path(file).stat())
        return os.pread(descriptor, 2**20, 0)


def test_what_was_used_longest_ago_goes(files: RemoteFiles, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "here", 200 * KIB)
    first, second, third, fourth = (wanted(files, f"{number}.tar") for number in range(4))
    for age, file in ((30, first), (20, second), (10, third)):
        assert content(cache, file) == Path(files.url.removeprefix("file://"), file.name).read_bytes()
        os.utime(cache.path(file), (time.time() - age, time.time() - age))
    assert content(cache, first)[0] == 0
    assert content(cache, fourth)[0] == 3
    assert [cache.path(file).exists() for file in (first, second, third, fourth)] == [True, False, True, True]
    assert held_bytes(cache.folder) <= cache.limit_bytes


def test_what_is_being_read_stays_and_others_wait_for_room(files: RemoteFiles, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "here", 100 * KIB)
    read, next_one = wanted(files, "1.tar"), wanted(files, "2.tar")
    with ThreadPoolExecutor(1) as thread:
        with cache.open(read) as descriptor:
            waiting = thread.submit(content, cache, next_one)
            time.sleep(0.2)
            assert not waiting.done() and os.pread(descriptor, 1, 0) == b"\1" and cache.path(read).exists()
        assert waiting.result(30)[:1] == b"\2"
    assert not cache.path(read).exists()


def test_a_limit_below_one_file_names_what_would_do(files: RemoteFiles, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=f"set cache.local_bytes to {64 * KIB} or more"):
        content(DiskCache(tmp_path / "here", 60 * KIB), wanted(files, "1.tar"))


def test_a_replaced_file_is_never_read_stale(files: RemoteFiles, tmp_path: Path) -> None:
    cache, there = DiskCache(tmp_path / "here", 1000 * KIB), Path(files.url.removeprefix("file://"))
    assert content(cache, wanted(files, "1.tar"))[:1] == b"\1"
    (there / "1.tar").write_bytes(b"9" * 64 * KIB)
    assert content(cache, wanted(files, "1.tar"))[:1] == b"9"


def test_other_bytes_than_the_digest_says_are_refused(files: RemoteFiles, tmp_path: Path) -> None:
    cache, file = DiskCache(tmp_path / "here", 1000 * KIB), wanted(files, "1.tar")
    with pytest.raises(DamagedError, match=r"1\.tar: arrives as other bytes than were written"):
        content(cache, RemoteFile(files, file.name, file.entry, "0" * 16))
    assert not cache.path(file).exists()
    assert content(cache, RemoteFile(files, file.name, file.entry))[:1] == b"\1"  # fetched twice, and equal


def test_a_file_that_is_gone_says_so(files: RemoteFiles, tmp_path: Path) -> None:
    file = wanted(files, "1.tar")
    Path(files.url.removeprefix("file://"), "1.tar").unlink()
    with pytest.raises(FileNotFoundError):
        content(DiskCache(tmp_path / "here", 1000 * KIB), file)
    assert files.entry("1.tar") is None and "1.tar" not in files.entries() and len(files.entries()) == 7


def test_what_a_killed_run_left_is_no_content_and_makes_room(files: RemoteFiles, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "here", 200 * KIB)
    cache.folder.mkdir()
    same, other = wanted(files, "1.tar"), wanted(files, "2.tar")
    for file in (same, other):
        cache.path(file).with_name(file.key + PARTIAL).write_bytes(b"half" * 20 * KIB)
    assert content(cache, same) == b"\1" * 64 * KIB
    for number in (3, 4):
        content(cache, wanted(files, f"{number}.tar"))
        assert held_bytes(cache.folder) <= cache.limit_bytes
    assert not list(cache.folder.glob(f"*{PARTIAL}"))


def read_all(url: str, folder: Path, limit_bytes: int, rounds: int, seed: int) -> None:
    cache, files = DiskCache(folder, limit_bytes), RemoteFiles(url)
    entries = files.entries()
    order = sorted(entries, key=lambda name: hash((seed, name)))
    with ThreadPoolExecutor(3) as threads:
        for name, found in zip(
            order * rounds,
            threads.map(lambda name: content(cache, RemoteFile(files, name, entries[name])), order * rounds),
            strict=True,
        ):
            assert found == bytes([int(name[0])]) * 64 * KIB


def test_processes_share_it_and_never_exceed_its_limit(files: RemoteFiles, tmp_path: Path) -> None:
    folder, limit_bytes = tmp_path / "here", 260 * KIB
    ranks = [(files.url, folder, limit_bytes, 6, seed) for seed in range(2)]
    killed = Forked(read_all, files.url, folder, limit_bytes, 1000, 7)
    most = 0
    running = start_together(read_all, *ranks)
    while any(process.is_running() for process in running):
        most = max(most, held_bytes(folder))
        if most and killed.is_running():
            killed.kill()
    killed.wait()
    for process in running:
        done = process.wait()
        assert done.returncode == 0, done.stderr
    assert 128 * KIB < most <= limit_bytes


def test_a_folder_that_cannot_be_written_is_one_line(files: RemoteFiles, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match=r"choose another cache\.local_dir"):
        content(DiskCache(tmp_path / "file", 1000 * KIB), wanted(files, "1.tar"))


def test_small_files_are_read_written_and_removed(files: RemoteFiles) -> None:
    assert files.write_new("below/new", b"one") and not files.write_new("below/new", b"two")
    assert files.read("below/new", 10) == b"one"
    files.write("below/new", b"")
    assert files.read("below/new", 10) == b"" and files.entries("below").keys() == {"below/new"}
    files.remove("below/new")
    files.remove("below/new")
    assert files.entries("below") == {} == files.entries("nowhere")
    with pytest.raises(DamagedError, match="more than 10 bytes"):
        files.read("1.tar", 10)
    with pytest.raises(RemoteError, match=r"1\.tar/below: .*(is a file|Not a directory)"):
        files.write("1.tar/below", b"")


def test_what_a_url_is() -> None:
    assert is_url("s3://bucket/k400") and is_url("file:///tmp") and is_url("simplecache::s3://bucket")
    assert not any(map(is_url, ("/data/k400", "data:k400", "s3:/bucket", "", None, Path("s3://bucket"))))
