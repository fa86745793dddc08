"""Reading files of a bucket from the disk cache: nearly as cheap as from a folder, and without a claim on its space."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from threading import Lock
from weakref import WeakSet

from flcache.cache.storage.local import storage_error
from flcache.errors import DamagedError
from flcache.remote import DiskCache, RemoteFile, fetch_soon

_TOUCH_S = 1.0
"""The disk cache orders its files by when they were used, to this precision."""


class _Open:
    """A descriptor, and how many threads read through it; it is locked while there are any."""

    _close = staticmethod(os.close)  # still there while the interpreter shuts down

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.readers, self.used_s = descriptor, 0, time.monotonic()

    def __del__(self) -> None:
        self._close(self.descriptor)


class KeptFile:
    """A StoredFile in the disk cache. It is fetched when it is first read, and again where it had to make room.

    Its descriptor stays open between reads, which costs no space: a file that makes room is emptied before it goes. A
    read that finds it gone fetches it again.
    """

    def __init__(self, disk: DiskCache, file: RemoteFile) -> None:
        self._disk, self._file = disk, file
        self._begin()
        _KEPT.add(self)

    def _begin(self) -> None:
        self._lock = Lock()
        self._open: _Open | None = None

    @property
    def num_bytes(self) -> int:
        return self._file.entry.size

    def read_into(self, offset: int, buffer: memoryview) -> int:
        num_read = None
        while num_read is None:
            num_read = self._read_into(offset, buffer)
        return num_read

    def will_need(self, offset: int, num_bytes: int) -> None:
        """Does nothing where it was read a moment ago."""
        found = self._open
        if found is None or time.monotonic() - found.used_s > _TOUCH_S:
            fetch_soon(self._disk, self._file)

    def close(self) -> None:
        self._open = None

    def _read_into(self, offset: int, buffer: memoryview) -> int | None:
        """As `read_into`; None if the file has made room since it was opened."""
        found = self._enter()
        try:
            num_read = os.preadv(found.descriptor, [buffer], offset)
            while num_read < len(buffer):
                more = os.preadv(found.descriptor, [buffer[num_read:]], offset + num_read)
                if not more:
                    return num_read if self._is_there(found) else None
                num_read += more
        except OSError as error:
            raise storage_error(self._disk.path(self._file), error) from error
        finally:
            self._leave(found)
        return num_read

    def _enter(self) -> _Open:
        """The open file, locked until `_leave`."""
        with self._lock:
            found = self._open
            if found is None:
                found = self._open = _Open(self._hold())
            elif not found.readers:
                fcntl.flock(found.descriptor, fcntl.LOCK_SH)
                self._touch(found)
            found.readers += 1
            return found

    def _leave(self, found: _Open) -> None:
        with self._lock:
            found.readers -= 1
            if not found.readers:
                fcntl.flock(found.descriptor, fcntl.LOCK_UN)

    def _touch(self, found: _Open) -> None:
        """Have the file counted as used. One that is gone is let go: another user's could not be emptied."""
        now_s = time.monotonic()
        if now_s - found.used_s > _TOUCH_S:
            found.used_s = now_s
            with suppress(OSError):  # of another user
                os.utime(found.descriptor)
            self._is_there(found)

    def _is_there(self, found: _Open) -> bool:
        """Whether the file has a name; else the next read opens it anew."""
        if os.fstat(found.descriptor).st_nlink:
            return True
        if self._open is found:
            self._open = None
        return False

    def _hold(self) -> int:
        try:
            return self._disk.hold(self._file)
        except FileNotFoundError:
            raise DamagedError(f"{self._file}: is not there; {self._hint}") from None
        except DamagedError as error:
            raise DamagedError(f"{error}; {self._hint}") from None

    @property
    def _hint(self) -> str:
        return f'"flcache verify {self._file.files.url}" says what is damaged'


_KEPT: WeakSet[KeptFile] = WeakSet()


def _begin_anew() -> None:
    """A fork shares the locks of open files with its parent, and has the state of threads that it lacks."""
    for file in _KEPT:
        file._begin()


os.register_at_fork(after_in_child=_begin_anew)
