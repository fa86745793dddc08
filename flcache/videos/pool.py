"""Clips decoded by other processes, which may hang or crash without harm: decoders are native code and do both.

Each thread of the pool owns one worker process. A worker that takes too long or dies is replaced, and its clip tried
once more. Workers end with the pool, and by themselves when this process is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flcache.errors import DecodeError
from flcache.videos import messages
from flcache.videos.decoders import ClipRequest, DecodedClip

K = TypeVar("K")

ATTEMPTS = 2
CLIPS_PER_WORKER = 256
"""Then it is replaced: decord's memory grows without bound (dmlc/decord issues 157 and 208)."""
_LOOK_AHEAD = 2  # clips a worker
_START_TIMEOUT_S = 120.0
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class DecodePool:
    """`workers` processes that decode clips, each within `timeout_s` seconds. A context manager."""

    def __init__(self, workers: int, timeout_s: float, *, decoder: str = "auto") -> None:
        self._workers = workers
        self._timeout_s = timeout_s
        self._decoder = decoder
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._mine = threading.local()
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._all:
            worker.close()

    def decode(self, items: Iterable[tuple[K, Path, ClipRequest]]) -> Iterator[tuple[K, DecodedClip | DecodeError]]:
        """Each key with its clip, or with the error that has the reason and the attempts, in the order of `items`.

        `items` is read at most two clips a worker ahead of what was taken.
        """
        waiting: deque[tuple[K, Future[DecodedClip | DecodeError]]] = deque()
        try:
            for key, path, request in items:
                waiting.append((key, self._threads.submit(self._decode_one, path, request)))
                if len(waiting) >= _LOOK_AHEAD * self._workers:
                    key, future = waiting.popleft()
                    yield key, future.result()
            while waiting:
                key, future = waiting.popleft()
                yield key, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that live now."""
        with self._lock:
            return [worker.pid for worker in self._all]

    def _decode_one(self, path: Path, request: ClipRequest) -> DecodedClip | DecodeError:
        head = {"path": str(path), "decoder": self._decoder, **asdict(request)}
        for attempt in range(1, ATTEMPTS + 1):
            worker = self._my_worker()
            try:
                return worker.decode(head, self._timeout_s)
            except _WorkerLost as lost:
                failure = DecodeError(f"{path}: {lost}", reason=lost.reason, attempts=attempt)
                self._drop(worker)
            except DecodeError as error:
                return DecodeError(str(error), reason=error.reason, attempts=attempt)
            if self._closed:
                break
        return failure

    def _my_worker(self) -> _Worker:
        """The worker of this thread: a fresh one where there is none, or the last one has done its share."""
        worker: _Worker | None = getattr(self._mine, "worker", None)
        if worker is not None and worker.clips_done >= CLIPS_PER_WORKER:
            self._drop(worker)
            worker = None
        if worker is None:
            worker = _Worker()
            with self._lock:
                self._all.add(worker)
                if self._closed:
                    worker.kill()
            self._mine.worker = worker
        return worker

    def _drop(self, worker: _Worker) -> None:
        self._mine.worker = None
        with self._lock:
            self._all.discard(worker)
        worker.close()


class _WorkerLost(DecodeError):
    """A worker hung or died; another may not."""


class _Worker:
    """One worker process and the socket to it."""

    def __init__(self) -> None:
        self.clips_done = 0
        self._timed_out = False
        self._ready = False
        self._channel, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "flcache.videos.decode_worker", str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": _with_package(os.environ.get("PYTHONPATH"))},
                start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def decode(self, head: dict[str, Any], timeout_s: float) -> DecodedClip:
        """The clip that `head` asks for. Raises DecodeError, which is _WorkerLost if the process hangs or dies."""
        if not self._ready:
            self._ready = bool(self._within(_START_TIMEOUT_S, None))
        self.clips_done += 1
        answer, payload = self._within(timeout_s, head)
        if "error" in answer:
            raise DecodeError(answer["error"], reason=answer["reason"])
        return DecodedClip(
            frames=payload.reshape(answer["shape"]),
            timestamps=np.array(answer["timestamps"], dtype=np.float64),
            mask=np.array(answer["mask"], dtype=np.bool_),
            decoder=answer["decoder"],
            nominal=np.array(answer["nominal"], dtype=np.float64),
        )

    def _within(self, timeout_s: float, head: dict[str, Any] | None) -> tuple[dict[str, Any], Any]:
        """The worker's next message, after sending it `head`. Killed at the deadline, even half-way through sending."""
        deadline = threading.Timer(timeout_s, self._kill_late)
        deadline.start()
        try:
            if head is not None:
                messages.send(self._channel, head)
            return messages.receive(self._channel)
        except (EOFError, OSError):
            raise self._lost(timeout_s) from None
        finally:
            deadline.cancel()

    def _kill_late(self) -> None:
        self._timed_out = True
        self.kill()

    def _lost(self, timeout_s: float) -> _WorkerLost:
        if self._timed_out:
            return _WorkerLost(f"timed out after {timeout_s:g} s", reason="timed out")
        self.kill()  # it may have closed its socket and live on
        code = self._process.wait()
        how = f"died with signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        return _WorkerLost(f"decoder process {how}", reason="worker died")

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """End the process and forget it."""
        self._process.kill()
        self._process.wait()
        self._channel.close()


def _with_package(search_path: str | None) -> str:
    """PYTHONPATH that finds this very package, from wherever it was imported here."""
    return os.pathsep.join([str(_PACKAGE_ROOT), *([search_path] if search_path else [])])
