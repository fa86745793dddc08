"""A store's files are whole or absent, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest

from flcache.cache.storage import LocalStore, open_store
from flcache.errors import CacheError, DamagedError

NAME = "shards/file"
WRITER = """
import sys
from pathlib import Path
from flcache.cache.storage import LocalStore
file = LocalStore(Path(sys.argv[1])).create(sys.argv[2])
file.write(b"half")
print("writing", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "cache")


@pytest.fixture
def writer(store: LocalStore) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of writing the file NAME."""
    program = [sys.executable, "-c", WRITER, str(store), NAME]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def read_part(store: LocalStore, name: str, offset: int, num_bytes: int) -> bytes:
    buffer = bytearray(num_bytes)
    return bytes(buffer[: store.open(name).read_into(offset, memoryview(buffer))])


def test_stream_is_published_or_discarded(store: LocalStore) -> None:
    for publish in (False, True):
        file = store.create(NAME)
        for content in (b"one ", memoryview(b"two")):
            file.write(content)
        assert not store.exists(NAME) and list(store.names()) == [] and len(list(store.unpublished())) == 1
        if publish:
            file.publish()
        file.discard()
        assert store.exists(NAME) == publish and not list(store.unpublished())
    assert store.read(NAME, 7) == b"one two" and store.size(NAME) == 7


def test_write_replaces_and_write_new_does_not(store: LocalStore) -> None:
    store.write(NAME, b"first")
    assert not store.write_new(NAME, b"second") and store.read(NAME, 10) == b"first"
    store.write(NAME, b"third")
    assert store.read(NAME, 10) == b"third"
    assert store.write_new("other", b"new") and sorted(store.names()) == ["other", NAME]
    assert not list(store.unpublished())


def test_one_of_many_new_writers_wins(store: LocalStore) -> None:
    writers = 8
    for round_number in range(20):
        name, together = f"race/{round_number}", Barrier(writers)

        def write(writer: int, name: str = name, together: Barrier = together) -> bool:
            together.wait()
            return store.write_new(name, b"%d" % writer)

        with ThreadPoolExecutor(writers) as pool:
            won = list(pool.map(write, range(writers)))
        assert sum(won) == 1 and store.read(name, 1) == b"%d" % won.index(True)


def test_leftover_of_a_killed_writer_goes(store: LocalStore, writer: subprocess.Popen[str]) -> None:
    assert len(list(store.unpublished())) == 1
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(list(store.unpublished())) == 1 and not store.exists(NAME)
    store.write(NAME, b"whole")
    assert not list(store.unpublished()) and store.read(NAME, 10) == b"whole"


def test_file_of_a_living_writer_stays(store: LocalStore, writer: subprocess.Popen[str]) -> None:
    store.write(NAME, b"whole")
    store.remove_leftovers(NAME)
    assert writer.poll() is None and len(list(store.unpublished())) == 1


def test_reads_are_bounded(store: LocalStore) -> None:
    store.write(NAME, b"0123456789")
    assert store.read(NAME, 10) == b"0123456789"
    with pytest.raises(DamagedError, match=f"{store}/{NAME}: more than 9 bytes"):
        store.read(NAME, 9)
    assert read_part(store, NAME, 2, 3) == b"234"
    assert read_part(store, NAME, 8, 3) == b"89"
    assert read_part(store, NAME, 99, 3) == b""


HOLDER = """
import sys
from pathlib import Path
from flcache.cache.storage import LocalStore
with LocalStore(Path(sys.argv[1])).lock(sys.argv[2]):
    print("holding", flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_block_or_its_process(store: LocalStore) -> None:
    program = [sys.executable, "-c", HOLDER, str(store), NAME]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "holding\n"
        with store.lock(NAME, wait=False) as held, store.lock("other", wait=False) as other:
            assert not held and other
        store.remove_leftovers(NAME)
        assert not list(store.names()) and len(list(store.unpublished())) == 1, "no file of the cache, but a temporary"
        process.kill()
        process.wait()
    for _ in range(2):
        with store.lock(NAME) as held, store.lock(NAME, wait=False) as again:
            assert held and not again
    assert not list(store.unpublished())


def test_a_lock_is_held_by_one_at_a_time(store: LocalStore) -> None:
    """Every holder removes the lock's file; whoever waited on that file must not take it for the lock."""
    holders, most = 0, 0

    def hold(_: int) -> None:
        nonlocal holders, most
        with store.lock(NAME):
            holders += 1
            most = max(most, holders)
            time.sleep(1e-4)
            holders -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(400)))
    assert most == 1 and holders == 0 and not list(store.unpublished())


def test_what_is_no_plain_file_is_refused_at_once(store: LocalStore) -> None:
    store.write("some", b"")
    os.mkfifo(store.root / "pipe")
    (store.root / "folder").mkdir()
    for name in ("pipe", "folder"):
        assert not store.exists(name) and store.size(name) is None
        for read in (lambda name=name: store.read(name, 10), lambda name=name: store.open(name)):
            with pytest.raises(DamagedError, match=f"{name}: no plain file"):
                read()


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "../x", "shards/../../x", "a//b", "./a", "a/", "a\0b"])
def test_names_that_leave_the_cache_are_refused(store: LocalStore, name: str) -> None:
    store.write("some", b"")
    for use in (
        lambda: store.read(name, 10),
        lambda: store.write(name, b"x"),
        lambda: store.remove(name),
        lambda: store.move("some", name),
        lambda: store.exists(name),
    ):
        with pytest.raises(CacheError, match="is not the name of a file below it"):
            use()
    assert list(store.names()) == ["some"] and not (store.root.parent / "x").exists()


def test_move_remove_and_names(store: LocalStore) -> None:
    store.write("a/one", b"1")
    store.write("b/two", b"2")
    assert store.move("a/one", "b/two") and store.read("b/two", 1) == b"1"
    assert list(store.names("b")) == ["b/two"] and not list(store.names("a")) and not list(store.names("nothing"))
    assert not store.move("a/one", "b/two") and store.exists("b/two")
    store.remove("b/two")
    store.remove("b/two")
    assert not store.exists("b/two")


def test_missing_file_is_one_clear_line(store: LocalStore) -> None:
    for read in (lambda: store.read(NAME, 10), lambda: store.open(NAME)):
        with pytest.raises(CacheError, match=rf"{store}/{NAME}: No such file or directory$"):
            read()


def test_file_left_open_ends_quietly_with_the_interpreter(store: LocalStore) -> None:
    store.write(NAME, b"")
    program = (  # modules that something refers to are emptied, the last imported first
        "import json, sys; from flcache.cache.storage import local; sys.modules_kept = [json, local]; "
        "json.kept = local.LocalStore(local.Path(sys.argv[1])).open(sys.argv[2])"
    )
    result = subprocess.run([sys.executable, "-c", program, str(store), NAME], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_open_store_takes_what_users_pass(tmp_path: Path) -> None:
    local = LocalStore(tmp_path)
    assert open_store(tmp_path) == open_store(str(tmp_path)) == local and open_store(local) is local
    assert str(local) == str(tmp_path)


def test_an_open_file_stays_what_it_was_when_another_takes_its_name(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("plan", b"old")
    with closing(store.open("plan")) as file:
        store.write("plan", b"new and longer")
        content = bytearray(file.num_bytes)
        assert file.read_into(0, memoryview(content)) == 3 and content == b"old"
