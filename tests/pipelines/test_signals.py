"""Signals end a command as Ctrl-C does: one line, nothing left behind, soon. Training first writes a checkpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import Forked, command_line, command_line_without, start_together

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


def arguments(config: Path, cache: Path, training: Path) -> list[str | Path]:
    """A run of enough steps to be caught in the middle, which logs seldom and writes no checkpoint on its way."""
    overrides = [f"cache.dir={cache}", f"training.dir={training}", "training.steps=60", "training.log_every=1000"]
    return ["train", "--config", config, *overrides, "training.checkpoint_every=1000", "--resume"]


def wait_for_steps(training: Path, process: Forked) -> None:
    wait_until(lambda: (log := training / "metrics.jsonl").exists() and log.stat().st_size, process)


def check_whole_and_parts_agree(whole: Path, parts: Path) -> None:
    """Weights, moments, learning rates and position of the last step."""
    last = "step-00000060"
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        one, other = (folder / "checkpoints" / last / name for folder in (whole, parts))
        assert one.read_bytes() == other.read_bytes(), name


def stopped_at(training: Path) -> int:
    (checkpoint,) = (training / "checkpoints").iterdir()
    return int(checkpoint.name.removeprefix("step-"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_training_writes_a_checkpoint_and_ends_and_resumes_to_the_same_bytes(
    config_file: Path, encoded: Path, tmp_path: Path, number: int
) -> None:
    whole, parts, cache = tmp_path / "whole", tmp_path / "parts", encoded.parent / "cache"
    uninterrupted = Forked(command_line, *arguments(config_file, cache, whole))
    process = Forked(command_line, *arguments(config_file, cache, parts))
    wait_for_steps(parts, process)
    sent = time.monotonic()
    for _ in range(3):  # Slurm and torchrun may both send it: a second one must not cost the checkpoint
        process.send_signal(number)
    ended = process.wait(60)
    check_soon(sent)
    assert ended.returncode == 128 + number, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == [f"Error: ended by {signal.Signals(number).name}"] and "Traceback" not in ended.stderr
    step = stopped_at(parts)
    assert 0 < step < 60 and f"step {step}: checkpoint written; go on with --resume" in ended.stdout
    resumed = Forked(command_line, *arguments(config_file, cache, parts)).wait()
    assert resumed.returncode == 0, resumed.stderr
    assert uninterrupted.wait().returncode == 0
    check_whole_and_parts_agree(whole, parts)


def test_two_processes_stop_at_one_step_when_one_is_asked_to(config_file: Path, encoded: Path, tmp_path: Path) -> None:
    whole, parts, cache = tmp_path / "whole", tmp_path / "parts", encoded.parent / "cache"

    def together(training: Path) -> list[Forked]:
        return start_together(command_line, *[tuple(arguments(config_file, cache, training))] * 2)

    uninterrupted, processes = together(whole), together(parts)
    try:
        wait_for_steps(parts, processes[0])
        processes[1].send_signal(signal.SIGTERM)
        ended = [process.wait(60) for process in processes]
        assert [result.returncode for result in ended] == [143, 143], ended
        assert 0 < stopped_at(parts) < 60
        resumed = together(parts)
        assert [process.wait().returncode for process in [*resumed, *uninterrupted]] == [0] * 4
    finally:
        for process in [*processes, *uninterrupted]:
            process.kill()
    check_whole_and_parts_agree(whole, parts)


def test_a_training_that_has_not_begun_ends_at_once(config_file: Path, encoded: Path, videos: Path) -> None:
    """While it decodes and encodes clips for the statistics; there is nothing to keep yet."""
    process = Forked(command_line, "train", "--config", config_file, "training.source=videos")
    wait_until(lambda: children(process.pid), process)
    sent = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    ended = process.wait(60)
    check_soon(sent)
    assert ended.returncode == 138 and "ended by SIGUSR1" in ended.stderr
    assert not (config_file.parent / "training" / "checkpoints").exists()
