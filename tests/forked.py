"""Processes of their own, forked from one that has imported everything: 0.1 s instead of 5 s each.

Memory, files, signals, output and exit code are their own, as those of a process that is started anew. What depends on
a new interpreter (which modules a command loads, how it exits, peak memory) is tested with `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 240.0


@cache
def fork_context() -> ForkServerContext:
    """Makes processes that begin with what `imported_once.py` imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imported_once"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        forkserver.ensure_running()
    return context


class Forked:
    """`run(*arguments)`, running. `environment` is added to that of the tests; what it prints is kept for `wait`."""

    def __init__(self, run: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None) -> None:
        self._output = Path(tempfile.mkdtemp(prefix="flcache-forked-"))
        self._command = [run.__name__, *map(str, arguments)]
        place = (self._output, Path.cwd(), {**os.environ, **(environment or {})})
        self._process = fork_context().Process(target=_run_there, args=(*place, run, arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` says of it. A process that takes longer is killed."""
        self._process.join(timeout_s)
        self.kill()
        texts = [self._printed(name) for name in ("stdout", "stderr")]
        shutil.rmtree(self._output)
        assert self._process.exitcode is not None
        return subprocess.CompletedProcess(self._command, self._process.exitcode, *texts)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _printed(self, name: str) -> str:
        path = self._output / name
        return path.read_text(encoding="utf-8") if path.exists() else ""


def run_forked(run: Callable[..., Any], *arguments: Any) -> subprocess.CompletedProcess[str]:
    return Forked(run, *arguments).wait()


def start_together(run: Callable[..., Any], *ranks: tuple[Any, ...]) -> list[Forked]:
    """`run` with the arguments of each of `ranks`, as `torchrun` starts the processes of one group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    group |= {"WORLD_SIZE": str(len(ranks)), "LOCAL_WORLD_SIZE": str(len(ranks))}
    started: list[Forked] = []
    try:
        for rank, arguments in enumerate(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(Forked(run, *arguments, environment={**group, **own}))
    except BaseException:
        _kill(started)
        raise
    return started


def run_together(run: Callable[..., Any], *ranks: tuple[Any, ...]) -> list[subprocess.CompletedProcess[str]]:
    """As `start_together`, to their ends."""
    started = start_together(run, *ranks)
    try:
        return [process.wait() for process in started]
    finally:
        _kill(started)


def _kill(started: list[Forked]) -> None:
    for process in started:
        process.kill()


def command_line(*arguments: str | Path) -> None:
    """`flcache ARGUMENTS`."""
    from flcache.pipelines.cli import main

    main([str(argument) for argument in arguments])


def script(path: Path, *arguments: str | Path) -> None:
    """`python PATH ARGUMENTS`."""
    sys.argv = [str(path), *map(str, arguments)]
    runpy.run_path(str(path), run_name="__main__")


def command_line_without(ignored: int, *arguments: str | Path) -> None:
    """`flcache ARGUMENTS`, started with the signal `ignored` ignored, as `nohup` does."""
    signal.signal(ignored, signal.SIG_IGN)
    command_line(*arguments)


def _run_there(
    output: Path, folder: Path, environment: dict[str, str], run: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    run(*arguments)
