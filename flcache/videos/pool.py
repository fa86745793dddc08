"""Videos read by worker processes: FFmpeg is native code, and may hang or crash.

Each thread of the pool owns one worker. Consecutive clips of one video are a run, which one worker decodes clip by
clip. A worker that takes too long or dies is replaced, its clip tried once more, and the run goes on. Workers end with
the pool, and by themselves when this process is killed.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flcache.errors import DecodeError
from flcache.videos import messages
from flcache.videos.decoders import ClipRequest, DecodedClip, VideoInfo
from flcache.videos.look_ahead import LookAhead
from flcache.videos.options import ClipRule
from flcache.videos.video_file import VideoFile, to_message

K = TypeVar("K")
R = TypeVar("R")

ATTEMPTS = 2
CLIPS_PER_WORKER = 256
"""A worker is replaced after these: decord's memory grows without bound (dmlc/decord issues 157 and 208)."""
_LOOK_AHEAD = 2  # runs a worker
LONGEST_RUN = 16
"""Clips; the next ones of the video are another run. Workers keep a video open, and a worker that is a run ahead of the
one whose clips are taken makes this many wait."""
_HEADERS_A_MESSAGE = 64
_START_TIMEOUT_S = 120.0
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class DecodePool:
    """`workers` processes that decode clips, each within `timeout_s` seconds. A context manager.

    A clip of more than `max_bytes` fails. Clips that wait decoded have no more than that together, beside the one that
    is taken next, and are no more than lets all workers work.
    """

    def __init__(self, workers: int, timeout_s: float, *, max_bytes: int = ClipRule.max_bytes) -> None:
        self._workers, self._timeout_s, self._max_bytes = workers, timeout_s, max_bytes
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._mine = threading.local()
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; clips that are being decoded fail."""
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._all:
            worker.close()

    def decode(
        self, items: Iterable[tuple[K, VideoFile, ClipRequest]]
    ) -> Iterator[tuple[K, DecodedClip | DecodeError]]:
        """Each key with its clip, or with the error that has the reason and the attempts, in the order of `items`.

        `items` is read at most two runs per worker ahead: of different videos, two clips.
        """
        waiting: deque[tuple[K, _Asked]] = deque()
        room = LookAhead(self._max_bytes, (self._workers - 1) * LONGEST_RUN + _LOOK_AHEAD * self._workers)
        ends: deque[int] = deque()  # number of clips read when each waiting run was complete
        taken = 0
        try:
            for run in _runs(items):
                asked = [_Asked(number, path, request) for number, (_, path, request) in run]
                waiting.extend(zip((key for _, (key, _, _) in run), asked, strict=True))
                ends.append(run[-1][0] + 1)
                self._threads.submit(self._decode_run, asked, room).add_done_callback(partial(_cancel_rest, asked))
                while len(ends) >= _LOOK_AHEAD * self._workers:
                    yield _first_of(waiting, room)
                    taken += 1
                    if taken == ends[0]:
                        ends.popleft()
            while waiting:
                yield _first_of(waiting, room)
        finally:
            room.close()

    def probe(self, paths: Sequence[VideoFile]) -> Iterator[VideoInfo | DecodeError]:
        """The header of each file, or the error that has the reason, in the order of `paths`."""
        batches = [paths[i : i + _HEADERS_A_MESSAGE] for i in range(0, len(paths), _HEADERS_A_MESSAGE)]
        for infos in self._threads.map(self._probe_some, batches):
            yield from infos

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that live now."""
        with self._lock:
            return [worker.pid for worker in self._all]

    def _decode_run(self, run: Sequence[_Asked], room: LookAhead) -> None:
        """Clips of one video, one after the other."""
        self._change_old_worker()
        for asked in run:
            try:
                if room.closed:  # nobody takes them
                    return
                asked.result.set_result(self._decode_one(asked, room))
            except BaseException as error:
                asked.result.set_exception(error)

    def _decode_one(self, asked: _Asked, room: LookAhead) -> DecodedClip | DecodeError:
        head = {"path": to_message(asked.path), **asdict(asked.request)}
        let_in = partial(room.let_in, asked.number)
        return self._tried(asked.path, lambda worker: worker.decode(head, self._timeout_s, let_in))

    def _probe_some(self, paths: Sequence[VideoFile]) -> list[VideoInfo | DecodeError]:
        """Headers in one message; if the worker is lost, each file in a message of its own."""
        self._change_old_worker()
        found = self._tried(
            paths[0], lambda worker: worker.probe(paths, self._timeout_s), attempts=1 if len(paths) > 1 else ATTEMPTS
        )
        if not isinstance(found, DecodeError):
            return found
        return [found] if len(paths) == 1 else [info for path in paths for info in self._probe_some([path])]

    def _tried(self, path: VideoFile, ask: Callable[[_Worker], R], attempts: int = ATTEMPTS) -> R | DecodeError:
        """The answer of a worker, or of another one if the first hangs or dies."""
        for attempt in range(1, attempts + 1):
            worker = self._my_worker()
            try:
                return ask(worker)
            except _WorkerLost as lost:
                failure = DecodeError(f"{path}: {lost}", reason=lost.reason, attempts=attempt)
                self._drop(worker)
            except DecodeError as error:
                return DecodeError(str(error), reason=error.reason, attempts=attempt)
            if self._closed:
                break
        return failure

    def _change_old_worker(self) -> None:
        """Let the worker of this thread go after CLIPS_PER_WORKER clips; never within a run."""
        worker: _Worker | None = getattr(self._mine, "worker", None)
        if worker is not None and worker.clips_done >= CLIPS_PER_WORKER:
            self._drop(worker)

    def _my_worker(self) -> _Worker:
        """The worker of this thread; a new one if there is none."""
        worker: _Worker | None = getattr(self._mine, "worker", None)
        if worker is None:
            worker = _Worker(self._max_bytes)
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


@dataclass(frozen=True)
class _Asked:
    """A clip that was asked for, and its result when there is one."""

    number: int
    path: VideoFile
    request: ClipRequest
    result: Future[DecodedClip | DecodeError] = field(default_factory=Future)


_Numbered = tuple[int, tuple[K, VideoFile, ClipRequest]]


def _runs(items: Iterable[tuple[K, VideoFile, ClipRequest]]) -> Iterator[list[_Numbered[K]]]:
    """Consecutive items with the same path, at most LONGEST_RUN of them, numbered over all."""
    run: list[_Numbered[K]] = []
    for number, item in enumerate(items):
        if run and (item[1] != run[0][1][1] or len(run) == LONGEST_RUN):
            yield run
            run = []
        run.append((number, item))
    if run:
        yield run


def _cancel_rest(run: Sequence[_Asked], _: object) -> None:
    """No clip of a run that has ended, or never began since the pool is closed, is waited for."""
    for asked in run:
        asked.result.cancel()


def _first_of(waiting: deque[tuple[K, _Asked]], room: LookAhead) -> tuple[K, DecodedClip | DecodeError]:
    key, asked = waiting.popleft()
    clip = asked.result.result()
    room.took(asked.number)
    return key, clip


class _WorkerLost(DecodeError):
    """A worker hung or died."""


class _Worker:
    """One worker process and the socket to it."""

    def __init__(self, max_bytes: int) -> None:
        self.clips_done = 0
        self._max_bytes = max_bytes
        self._timed_out = False
        self._ready = False
        self._channel, theirs = socket.socketpair()
        search_path = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            arguments = (theirs.fileno(), os.getpid(), max_bytes)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flcache.videos.decode_worker", *map(str, arguments)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path)},  # finds this very package
                start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone
            )
        self.pid = self._process.pid

    def decode(self, head: dict[str, Any], timeout_s: float, let_in: Callable[[int], None]) -> DecodedClip:
        """The clip that `head` asks for. Raises DecodeError, which is _WorkerLost if the process hangs or dies.

        `let_in` is called with its bytes before they are received.
        """
        answer, payload = self._ask(head, timeout_s)
        if "error" in answer:
            raise DecodeError(answer["error"], reason=answer["reason"])
        count = payload.num_bytes
        if count > self._max_bytes or count != math.prod(answer["shape"]):
            raise _WorkerLost(f"decoder process sends {count} bytes for {answer['shape']}", reason="worker died")
        let_in(count)
        frames = self._within(timeout_s, payload.read)
        return DecodedClip(
            frames=frames.reshape(answer["shape"]),
            timestamps=np.array(answer["timestamps"], dtype=np.float64),
            mask=np.array(answer["mask"], dtype=np.bool_),
            decoder=answer["decoder"],
            nominal=np.array(answer["nominal"], dtype=np.float64),
        )

    def probe(self, paths: Sequence[VideoFile], timeout_s: float) -> list[VideoInfo | DecodeError]:
        """The header of each file, in the order of `paths`. Raises _WorkerLost if the process hangs or dies."""
        answer, _ = self._ask({"probe": [to_message(path) for path in paths]}, timeout_s)
        return [
            DecodeError(info["error"], reason=info["reason"]) if "error" in info else VideoInfo(**info)
            for info in answer["infos"]
        ]

    def _ask(self, head: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], messages.Payload]:
        """The answer to `head` and the bytes that come with it."""
        if not self._ready:
            self._ready = bool(self._within(_START_TIMEOUT_S, lambda: messages.receive_head(self._channel)))
        self.clips_done += 1

        def exchange() -> tuple[dict[str, Any], messages.Payload]:
            messages.send(self._channel, head)
            return messages.receive_head(self._channel)

        return self._within(timeout_s, exchange)

    def _within(self, timeout_s: float, talk: Callable[[], R]) -> R:
        """The result of `talk`. The worker is killed after `timeout_s`, even while it is sending."""
        deadline = threading.Timer(timeout_s, self._kill_late)
        deadline.start()
        try:
            return talk()
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
        self._process.kill()
        self._process.wait()
        self._channel.close()
