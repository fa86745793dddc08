"""Fetching remote files in the background, in the order in which they are asked for."""

from __future__ import annotations

import os
from functools import lru_cache
from queue import SimpleQueue
from threading import Thread

from flcache.errors import FlcacheError
from flcache.remote.disk import DiskCache, RemoteFile

THREADS = 8
"""Files that are fetched at once, by a process."""


def fetch_soon(disk: DiskCache, file: RemoteFile) -> None:
    """Have the file in `disk`, and count it as used; returns at once. A failure is left for the reader to meet."""
    _crew(os.getpid()).give(disk, file)


@lru_cache(maxsize=1)
def _crew(process: int) -> _Crew:
    """That of this process: threads do not survive a fork."""
    return _Crew()


class _Crew:
    """Daemon threads: a download must not block interpreter exit. What it leaves is removed as after a kill."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[DiskCache, RemoteFile]] = SimpleQueue()
        self._waiting: set[str] = set()
        for number in range(THREADS):
            Thread(target=self._serve, name=f"flcache-fetch-{number}", daemon=True).start()

    def give(self, disk: DiskCache, file: RemoteFile) -> None:
        if file.key not in self._waiting:
            self._waiting.add(file.key)
            self._queue.put((disk, file))

    def _serve(self) -> None:
        while True:
            disk, file = self._queue.get()
            try:
                disk.fetch(file)
            except (FlcacheError, OSError):
                pass
            finally:
                self._waiting.discard(file.key)
