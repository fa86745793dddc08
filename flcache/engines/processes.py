"""Shard tasks in several encoder processes of this machine, one a device.

Each process asks for a task when it has room for one. Commits alone say what is done, so a process may die at any time:
its shards are given out once more, to a process that replaces it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any

import torch

from flcache.cache.format.names import shard_files
from flcache.cache.storage import open_store
from flcache.engines import local
from flcache.engines.figures import EncoderTimes, together
from flcache.engines.job import ClipDone, EncodeJob, Event, ShardCommitted, ShardTask
from flcache.errors import CacheError, FlcacheError

ATTEMPTS = 2
"""Processes that may die over one shard."""
_TIDY_S = 5.0

Key = tuple[str, int]
"""Split and shard."""
_BEFORE_ANY: Key = ("", 0)


def run(
    job: EncodeJob,
    tasks: Iterable[ShardTask],
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    devices: Sequence[str],
    context: BaseContext | None = None,
) -> EncoderTimes:
    """Encode and commit every task of `job`, with a process for each of `devices`, among which the decode workers are
    shared out. `context` starts the processes; without it they are spawned.

    As `local.run` otherwise. Raises CacheError if `ATTEMPTS` processes die over the same shard.
    """
    with _Crew(job, tasks, on_event, devices, context or multiprocessing.get_context("spawn")) as crew:
        return crew.run()


class _Encoder:
    """An encoder process, and the tasks that it has and has not committed."""

    def __init__(self, job: EncodeJob, threads: int, context: BaseContext) -> None:
        self.job = job
        self.channel, theirs = context.Pipe()
        process: Any = context.Process  # type: ignore[attr-defined]
        self.process = process(target=_encode, args=(job, threads, theirs))
        self.process.start()
        theirs.close()
        self.tasks: dict[Key, ShardTask] = {}
        self._shards: dict[str, Key] = {}

    def give(self, task: ShardTask | None) -> None:
        """A task to do, or None where there are no more."""
        if task is not None:
            key = task.split, task.shard
            self.tasks[key] = task
            self._shards |= {clip.clip_id: key for clip in task.clips}
        self.channel.send(task)

    def shard_of(self, event: Event) -> Key:
        if isinstance(event, ShardCommitted):
            return event.commit.split, event.commit.shard
        return self._shards.pop(event.clip_id if isinstance(event, ClipDone) else event.failure.clip_id)

    def end(self) -> None:
        """End it, if it has not ended, and remove what it has not committed."""
        self.process.join(_TIDY_S)
        self.process.kill()
        self.process.join()
        for split, shard in self.tasks:
            open_store(self.job.cache).remove_leftovers(shard_files(split, shard).tar)

    @property
    def how_it_ended(self) -> str:
        code = self.process.exitcode or 0
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


class _Crew:
    """The encoder processes of one run."""

    def __init__(
        self,
        job: EncodeJob,
        tasks: Iterable[ShardTask],
        on_event: Callable[[Event], None],
        devices: Sequence[str],
        context: BaseContext,
    ) -> None:
        self._context = context
        self._tasks, self._on_event = iter(tasks), on_event
        self._again: deque[ShardTask] = deque()
        self._deaths: Counter[Key] = Counter()
        self._told: Counter[Key] = Counter()
        self._repeats: Counter[Key] = Counter()
        self._times: list[EncoderTimes] = []
        self._threads = max(1, torch.get_num_threads() // len(devices))
        workers = max(1, job.decode_workers // len(devices))
        jobs = [replace(job, device=device, decode_workers=workers) for device in devices]
        self._encoders = [_Encoder(job, self._threads, context) for job in jobs]

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        """End what still runs, as after an error, and remove what it leaves."""
        for encoder in self._encoders:
            encoder.process.terminate()
        for encoder in self._encoders:
            encoder.end()

    def run(self) -> EncoderTimes:
        while self._encoders:
            for channel in wait([encoder.channel for encoder in self._encoders]):
                encoder = next(encoder for encoder in self._encoders if encoder.channel is channel)
                try:
                    self._heed(encoder, *encoder.channel.recv())
                except (EOFError, ConnectionError):
                    self._replace(encoder)
        return together(self._times)

    def _heed(self, encoder: _Encoder, kind: str, content: Any) -> None:
        """One message of a process."""
        if kind == "event":
            self._tell(encoder, content)
        elif kind == "done":
            self._times.append(content)
            self._encoders.remove(encoder)
            encoder.process.join()
        elif kind == "failed":
            error, text = content
            raise error from (None if isinstance(error, FlcacheError) else RuntimeError(text))
        else:
            encoder.give(self._again.popleft() if self._again else next(self._tasks, None))

    def _tell(self, encoder: _Encoder, event: Event) -> None:
        """Pass an event on, unless it is of a clip that a process has told of before it died."""
        key = encoder.shard_of(event)
        if isinstance(event, ShardCommitted):
            del encoder.tasks[key]
        elif self._repeats[key]:
            self._repeats[key] -= 1
            return
        else:
            self._told[key] += 1
        self._on_event(event)

    def _replace(self, encoder: _Encoder) -> None:
        """Give the shards of a process that died out once more."""
        encoder.end()
        self._encoders.remove(encoder)
        for key in encoder.tasks or [_BEFORE_ANY]:
            self._deaths[key] += 1
            self._repeats[key] = self._told[key]
            if self._deaths[key] >= ATTEMPTS:
                when = f"over shard {key[0]}-{key[1]:06d}" if encoder.tasks else "before they had a shard"
                raise CacheError(
                    f"{encoder.job.cache}: {ATTEMPTS} encoder processes died {when}, the last "
                    f"{encoder.how_it_ended}; see whether memory ran out, then run the same command again"
                )
        self._again += encoder.tasks.values()
        self._encoders.append(_Encoder(encoder.job, self._threads, self._context))


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, even by SIGKILL, and end at once."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _encode(job: EncodeJob, threads: int, channel: Connection) -> None:
    """What an encoder process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    saying = threading.Lock()

    def say(kind: str, content: Any = None) -> None:
        with saying:
            channel.send((kind, content))

    def tasks() -> Iterator[ShardTask]:
        while True:
            say("wants a task")
            task = channel.recv()
            if task is None:
                return
            yield task

    try:
        say("done", local.run(job, tasks(), lambda event: say("event", event)))
    except Exception as error:  # the parent raises it
        say("failed", (error, traceback.format_exc()))
