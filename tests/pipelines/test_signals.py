"""SIGTERM and SIGHUP end a command as Ctrl-C does: one line, nothing left behind, soon."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import Forked, command_line, command_line_without

SOON_S = 5.0
"""On a machine with a free core."""


def wait_until(seen: Callable[[], object], process: Forked) -> None:
    deadline = time.monotonic() + 300  # a busy machine imports slowly
    try:
        while not seen():
            assert process.is_running() and time.monotonic() < deadline
            time.sleep(0.005)
    except BaseException:
        process.kill()
        raise


def children(pid: int) -> list[int]:
    """The decode workers of a process that have started: they write to nowhere from then on."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    started = [int(child) for task in tasks for child in task.read_text().split()]
    return [child for child in started if os.path.realpath(f"/proc/{child}/fd/2") == os.devnull]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp"))


def check_soon(sent: float) -> None:
    assert time.monotonic() - sent < SOON_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def check_end(process: Forked, number: int) -> None:
    sent = time.monotonic()
    process.send_signal(number)
    ended = process.wait(60)
    check_soon(sent)
    assert ended.returncode == 128 + number, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if not line.startswith(("Encoding: ", "Notice: "))]
    assert lines == [f"Error: ended by {signal.Signals(number).name}"]


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Processes that a test has stopped; killed at its end, whatever has happened."""
    pids: list[int] = []
    yield pids
    for pid in filter(is_alive, pids):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("hanging", [False, True])
def test_an_encode_ends_tidily(config_file: Path, number: int, hanging: bool, stopped: list[int]) -> None:
    """At the first temporary tar; with a decoder that hangs, as one does that is stopped."""
    cache_dir = config_file.parent / "cache"
    process = Forked(command_line, "encode", "--config", config_file, "encode.decode_workers=1")
    wait_until(lambda: list(cache_dir.glob("shards/.*.tmp")) and children(process.pid), process)
    workers = children(process.pid)
    if hanging:
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
            stopped.append(worker)
        time.sleep(1)
    assert temporaries(cache_dir)
    check_end(process, number)
    assert not temporaries(cache_dir) and not [worker for worker in workers if is_alive(worker)]


def test_a_hang_up_is_ignored_under_nohup(config_file: Path) -> None:
    cache_dir = config_file.parent / "cache"
    process = Forked(command_line_without, signal.SIGHUP, "encode", "--config", config_file)
    wait_until(lambda: list(cache_dir.glob("shards/.*.tmp")), process)
    process.send_signal(signal.SIGHUP)
    ended = process.wait()
    assert ended.returncode == 0, ended.stderr


def test_a_training_ends_with_143(config_file: Path, encoded: Path) -> None:
    training = config_file.parent / "training"
    overrides = [f"cache.dir={encoded.parent / 'cache'}", "training.steps=100000", "training.checkpoint_every=50000"]
    process = Forked(command_line, "train", "--config", config_file, *overrides)
    wait_until(lambda: (training / "metrics.jsonl").exists(), process)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    ended = process.wait(60)
    check_soon(sent)
    assert ended.returncode == 143
    assert [line for line in ended.stderr.splitlines() if line.startswith("Error: ")] == ["Error: ended by SIGTERM"]
    assert "Traceback" not in ended.stderr
