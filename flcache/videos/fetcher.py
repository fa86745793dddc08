"""Files at URLs, on this machine before a worker reads them: a download is no time of the decoder's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from flcache.errors import DecodeError, RemoteError
from flcache.videos.remote_path import Place, RemotePath
from flcache.videos.video_file import VideoFile, at_hand, in_whole, whole_file

PATIENCE_S = 600.0
"""A download that takes longer, and longer than `SLOWEST` lets it, has failed."""
SLOWEST = 100_000.0
"""Bytes a second."""


class Fetcher:
    """Fetches files ahead, each in a thread of its own: one that hangs delays neither the others nor the end."""

    def __init__(self) -> None:
        self._begun: set[Future[Place]] = set()

    def begin(self, file: VideoFile) -> Future[Place]:
        """Fetch the file that it is in. The result is that file as it was fetched; at once where it is a local one."""
        begun: Future[Place] = Future()
        whole = whole_file(file)
        if isinstance(whole, Path):
            begun.set_result(whole)
            return begun
        self._begun.add(begun)
        begun.add_done_callback(self._begun.discard)
        threading.Thread(target=_fetch, args=(whole, begun), name="fetch", daemon=True).start()
        return begun

    def close(self) -> None:
        """Nobody waits any more."""
        for begun in list(self._begun):
            begun.cancel()

    @contextmanager
    def held(self, file: VideoFile, begun: Future[Place]) -> Iterator[VideoFile]:
        """The file on this machine during the block.

        Raises DecodeError with the reason if it cannot be fetched, CacheError where the disk has no room for it.
        """
        patience_s = _patience_s(file)
        with ExitStack() as held:
            try:
                here = held.enter_context(at_hand(in_whole(file, begun.result(patience_s))))
            except FileNotFoundError:
                raise DecodeError(f"{file}: no such file", reason="no file") from None
            except TimeoutError:
                words = f"{file}: the download has not ended within {patience_s:.0f} s"
                raise DecodeError(words, reason="timed out") from None
            except RemoteError as error:
                raise DecodeError(str(error), reason="not readable") from None
            yield here


def _patience_s(file: VideoFile) -> float:
    entry = getattr(whole_file(file), "entry", None)
    return PATIENCE_S + (entry.size if entry else 0) / SLOWEST


def _fetch(file: RemotePath, begun: Future[Place]) -> None:
    with suppress(InvalidStateError):  # nobody waits any more
        try:
            with file.copied() as copied:
                whole = replace(copied, copy=None)
        except BaseException as error:
            begun.set_exception(error)
        else:
            begun.set_result(whole)
