"""Videos read by worker processes: FFmpeg is native code, and may hang or crash.

Each thread of the pool owns one worker. Consecutive clips of one video are a run, which one worker decodes clip by
clip. A worker that takes too long or dies is replaced, its clip tried once more, and the run goes on. Workers end with
the pool, and by themselves when this process is killed. They read local files only: what is at a URL is fetched before.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from flcache.errors import DecodeError
from flcache.videos.decoders import ClipRequest, DecodedClip, VideoInfo
from flcache.videos.fetcher import Fetcher
from flcache.videos.look_ahead import LookAhead
from flcache.videos.options import ClipRule
from flcache.videos.remote_path import Place
from flcache.videos.video_file import VideoFile, to_message, whole_file
from flcache.videos.worker import Worker, WorkerLost

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


class DecodePool:
    """`workers` processes that decode clips, each within `timeout_s` seconds. A context manager.

    A clip of more than `max_bytes` fails. Clips that wait decoded have no more than that together, beside the one that
    is taken next, and are no more than lets all workers work. Clips come with `arrays`, numbers a row by name.
    """

    def __init__(
        self,
        workers: int,
        timeout_s: float,
        *,
        max_bytes: int = ClipRule.max_bytes,
        arrays: Mapping[str, int] | None = None,
    ) -> None:
        self._workers, self._timeout_s, self._max_bytes = workers, timeout_s, max_bytes
        self.arrays = dict(arrays or {})
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._fetcher = Fetcher()
        self._mine = threading.local()
        self._all: set[Worker] = set()
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
        self._fetcher.close()
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
                begun = self._fetcher.begin(asked[0].path)
                decoding = self._threads.submit(self._decode_run, asked, begun, room)
                decoding.add_done_callback(partial(_cancel_rest, asked))
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
        waiting: deque[Future[list[VideoInfo | DecodeError]]] = deque()
        for batch in _batches(paths):
            waiting.append(self._threads.submit(self._probe_batch, batch, self._fetcher.begin(batch[0])))
            if len(waiting) >= _LOOK_AHEAD * self._workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that live now."""
        with self._lock:
            return [worker.pid for worker in self._all]

    def _decode_run(self, run: Sequence[_Asked], begun: Future[Place], room: LookAhead) -> None:
        """Clips of one video, one after the other, once it is fetched."""
        self._change_old_worker()
        try:
            with self._fetcher.held(run[0].path, begun) as file:
                self._decode_clips(run, file, room)
        except BaseException as error:
            for asked in run:
                asked.result.set_exception(error)

    def _decode_clips(self, run: Sequence[_Asked], file: VideoFile, room: LookAhead) -> None:
        for asked in run:
            try:
                if room.closed:  # nobody takes them
                    return
                asked.result.set_result(self._decode_one(asked, file, room))
            except BaseException as error:
                asked.result.set_exception(error)

    def _decode_one(self, asked: _Asked, file: VideoFile, room: LookAhead) -> DecodedClip | DecodeError:
        head = {"path": to_message(file), **asdict(asked.request), "arrays": self.arrays}
        let_in = partial(room.let_in, asked.number)
        return self._tried(asked.path, lambda worker: worker.decode(head, self._timeout_s, let_in))

    def _probe_batch(self, paths: Sequence[VideoFile], begun: Future[Place]) -> list[VideoInfo | DecodeError]:
        """Headers of files of which the first may be at a URL."""
        try:
            with self._fetcher.held(paths[0], begun) as first:
                return self._probe_some([first, *paths[1:]])
        except DecodeError as error:
            return [error]

    def _probe_some(self, paths: Sequence[VideoFile]) -> list[VideoInfo | DecodeError]:
        """Headers in one message; if the worker is lost, each file in a message of its own."""
        self._change_old_worker()
        found = self._tried(
            paths[0], lambda worker: worker.probe(paths, self._timeout_s), attempts=1 if len(paths) > 1 else ATTEMPTS
        )
        if not isinstance(found, DecodeError):
            return found
        return [found] if len(paths) == 1 else [info for path in paths for info in self._probe_some([path])]

    def _tried(self, path: VideoFile, ask: Callable[[Worker], R], attempts: int = ATTEMPTS) -> R | DecodeError:
        """The answer of a worker, or of another one if the first hangs or dies."""
        for attempt in range(1, attempts + 1):
            worker = self._my_worker()
            try:
                return ask(worker)
            except WorkerLost as lost:
                failure = DecodeError(f"{path}: {lost}", reason=lost.reason, attempts=attempt)
                self._drop(worker)
            except DecodeError as error:
                return DecodeError(str(error), reason=error.reason, attempts=attempt)
            if self._closed:
                break
        return failure

    def _change_old_worker(self) -> None:
        """Let the worker of this thread go after CLIPS_PER_WORKER clips; never within a run."""
        worker: Worker | None = getattr(self._mine, "worker", None)
        if worker is not None and worker.clips_done >= CLIPS_PER_WORKER:
            self._drop(worker)

    def _my_worker(self) -> Worker:
        """The worker of this thread; a new one if there is none."""
        worker: Worker | None = getattr(self._mine, "worker", None)
        if worker is None:
            worker = Worker(self._max_bytes)
            with self._lock:
                self._all.add(worker)
                if self._closed:
                    worker.kill()
            self._mine.worker = worker
        return worker

    def _drop(self, worker: Worker) -> None:
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


def _batches(paths: Sequence[VideoFile]) -> Iterator[Sequence[VideoFile]]:
    """Many local files, or one at a URL."""
    for is_local, some in groupby(paths, lambda path: isinstance(whole_file(path), Path)):
        group, size = list(some), _HEADERS_A_MESSAGE if is_local else 1
        yield from (group[i : i + size] for i in range(0, len(group), size))


def _cancel_rest(run: Sequence[_Asked], _: object) -> None:
    """No clip of a run that has ended, or never began since the pool is closed, is waited for."""
    for asked in run:
        asked.result.cancel()


def _first_of(waiting: deque[tuple[K, _Asked]], room: LookAhead) -> tuple[K, DecodedClip | DecodeError]:
    key, asked = waiting.popleft()
    clip: DecodedClip | DecodeError
    try:
        clip = asked.result.result()
    except DecodeError as error:
        clip = error
    room.took(asked.number)
    return key, clip
