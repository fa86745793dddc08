"""Reading from the disk cache: many threads and forks, and files that make room between two reads."""

from __future__ import annotations

import fcntl
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from watched import held_bytes

from flcache.cache.storage import RemoteStore
from flcache.cache.storage.kept import KeptFile
from flcache.errors import DamagedError

KIB = 2**10
SIZE = 64 * KIB


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.tar").write_bytes(bytes([number]) * SIZE)
    return folder


@pytest.fixture
def store(there: Path, tmp_path: Path) -> RemoteStore:
    """It keeps two of the four files."""
    return RemoteStore(f"file://{there}", tmp_path / "here", 2 * SIZE + KIB)


def opened(store: RemoteStore, number: int) -> KeptFile:
    file = store.open(f"{number}.tar")
    assert isinstance(file, KeptFile)
    return file


def content(file: KeptFile, offset: int = 0, num_bytes: int = SIZE) -> bytes:
    buffer = bytearray(num_bytes)
    return bytes(buffer[: file.read_into(offset, memoryview(buffer))])


def descriptors_of(folder: Path) -> list[os.stat_result]:
    """The files below `folder`, there or gone, that this process has open."""
    links = Path("/proc/self/fd").iterdir()
    return [link.stat() for link in links if str(link.resolve()).startswith(str(folder))]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are read from /proc")
def test_an_open_file_that_makes_room_takes_no_space_and_comes_back(store: RemoteStore, tmp_path: Path) -> None:
    files = [opened(store, number) for number in range(4)]
    for number in (0, 1, 2, 3, 0, 2, 1):
        assert content(files[number]) == bytes([number]) * SIZE
        assert held_bytes(tmp_path / "here") <= 2 * SIZE + KIB
        assert sum(status.st_blocks * 512 for status in descriptors_of(tmp_path / "here")) <= 2 * SIZE + KIB
    for file in files:
        file.close()
    assert descriptors_of(tmp_path / "here") == []


def test_the_end_of_a_file_is_a_short_read(store: RemoteStore) -> None:
    file = opened(store, 1)
    assert content(file, SIZE - 10, 100) == b"\1" * 10 and content(file, SIZE, 100) == b""
    assert content(file) == b"\1" * SIZE


def test_threads_that_drive_out_each_others_files_read_what_is_there(store: RemoteStore, tmp_path: Path) -> None:
    files = [opened(store, number) for number in range(4)]

    def read(seed: int) -> None:
        numbers = random.Random(seed)
        for _ in range(150):
            number, offset = numbers.randrange(4), numbers.randrange(SIZE - KIB)
            assert content(files[number], offset, KIB) == bytes([number]) * KIB

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(read, range(6)))
    assert held_bytes(tmp_path / "here") <= 2 * SIZE + KIB


def test_a_fork_has_locks_of_its_own(store: RemoteStore, tmp_path: Path) -> None:
    file = opened(store, 1)
    content(file)
    (begun, begin), (ended, end) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        file._take()
        os.write(begin, b".")
        os.read(ended, 1)
        os._exit(0)
    os.read(begun, 1)
    assert content(file) == b"\1" * SIZE, "and gives back its own lock"
    try:
        (kept,) = (tmp_path / "here").glob("*.tar")
        with kept.open("rb") as another, pytest.raises(BlockingIOError):
            fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.write(end, b".")
        os.waitpid(child, 0)


def test_what_was_read_a_moment_ago_is_not_asked_for_again(store: RemoteStore, there: Path, tmp_path: Path) -> None:
    file = opened(store, 1)
    file.will_need(0, SIZE)
    for _ in range(600):
        if held_bytes(tmp_path / "here") == SIZE:
            break
        time.sleep(0.05)
    content(file)
    (there / "1.tar").unlink()
    for kept in (tmp_path / "here").glob("*.tar"):
        kept.unlink()
    file.will_need(0, SIZE)
    assert content(file) == b"\1" * SIZE, "it is still open"
    file.close()
    with pytest.raises(DamagedError, match=r"1\.tar: is not there"):
        content(file)
