"""Stages in threads of their own, and what they hand over to each other.

The first error of any stage ends all of them at once, and is what the caller gets.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ended(Exception):
    """Another stage has failed; this one has nothing more to do."""


class Stages:
    """The stages of one run. Every `Handover` between them ends when one of them fails."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._running = 0

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` in a thread."""
        thread = threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
        self._threads.append(thread)
        self._running += 1
        thread.start()

    def fail(self, error: BaseException) -> None:
        """End all stages; of several errors the first stays."""
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def join(self, on_error: Callable[[], None]) -> None:
        """Wait until all threads have ended. Raises the first error, after `on_error` has been called."""
        with self.changed:
            self.changed.wait_for(lambda: self.error is not None or self._running == 0)
        if self.error is not None:
            on_error()
        for thread in self._threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Ended:
            pass
        except BaseException as error:  # the caller of `join` gets it
            self.fail(error)
        finally:
            with self.changed:
                self._running -= 1
                self.changed.notify_all()


class Handover(Generic[T]):
    """What one stage has done and the next has not begun, in order; `put` waits while there are `limit` of them."""

    def __init__(self, stages: Stages, limit: int) -> None:
        self._stages, self._limit = stages, limit
        self._waiting: deque[T] = deque()
        self._closed = False

    def put(self, item: T) -> None:
        """Raises Ended if a stage has failed."""
        with self._stages.changed:
            self._wait_for(lambda: len(self._waiting) < self._limit)
            self._waiting.append(item)
            self._stages.changed.notify_all()

    def close(self) -> None:
        """Nothing more comes."""
        with self._stages.changed:
            self._closed = True
            self._stages.changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Each item once, until `close`. Raises Ended if a stage has failed."""
        while True:
            with self._stages.changed:
                self._wait_for(lambda: bool(self._waiting) or self._closed)
                if not self._waiting:
                    return
                item = self._waiting.popleft()
                self._stages.changed.notify_all()
            yield item

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        self._stages.changed.wait_for(lambda: self._stages.error is not None or condition())
        if self._stages.error is not None:
            raise Ended
