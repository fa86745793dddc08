"""Reading files of a bucket from the disk cache: nearly as cheap as from a folder, and without a claim on its space."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from math import inf
from weakref import WeakSet

from flcache.cache.storage.local import storage_error
from flcache.errors import DamagedError
from flcache.remote import TOUCH_S, DiskCache, RemoteFile, fetch_soon


class KeptFile:
    """A StoredFile in the disk cache. It is fetched when it is first read, and again where it had to make room.

    Descriptors stay open between reads, which costs no space: a file that makes room is emptied before it goes. A read
    that finds it gone fetches it again. A thread has a descriptor to itself while it reads, since the lock that keeps
    the file here is the descriptor's. Lock-free otherwise, because a finalizer may run during any call and would
    deadlock on a lock: to take and to give back a descriptor are atomic steps.
    """

    _close = staticmethod(os.close)  # still there while the interpreter shuts down

    def __init__(self, disk: DiskCache, file: RemoteFile) -> None:
        self._disk, self._file = disk, file
        self._idle: list[int] = []
        """Open descriptors without a lock."""
        self._used_s = -inf
        _KEPT.add(self)

    def __del__(self) -> None:
        self.close()

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
        if time.monotonic() - self._used_s > TOUCH_S:
            fetch_soon(self._disk, self._file)

    def close(self) -> None:
        try:  # `suppress` may be gone while the interpreter shuts down
            while True:
                self._close(self._idle.pop())
        except IndexError:
            pass

    def _read_into(self, offset: int, buffer: memoryview) -> int | None:
        """As `read_into`; None if the file has made room since it was opened."""
        descriptor, is_there = self._take(), False
        try:
            num_read = os.preadv(descriptor, [buffer], offset)
            while num_read < len(buffer):
                more = os.preadv(descriptor, [buffer[num_read:]], offset + num_read)
                if not more:
                    break
                num_read += more
            is_there = num_read == len(buffer) or _has_name(descriptor)
        except OSError as error:
            raise storage_error(self._disk.path(self._file), error) from error
        finally:
            self._give_back(descriptor, is_there=is_there)
        return num_read if is_there else None

    def _take(self) -> int:
        """A descriptor that keeps the file here."""
        now_s = time.monotonic()
        try:
            descriptor = self._idle.pop()
        except IndexError:
            descriptor = self._hold()
        else:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if now_s - self._used_s <= TOUCH_S:
                return descriptor
            if not _has_name(descriptor):  # another user's, which could not be emptied
                os.close(descriptor)
                return self._take()
            with suppress(OSError):  # another user's
                os.utime(descriptor)
        self._used_s = now_s
        return descriptor

    def _give_back(self, descriptor: int, *, is_there: bool) -> None:
        if is_there:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            self._idle.append(descriptor)
        else:
            os.close(descriptor)

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


def _has_name(descriptor: int) -> bool:
    return os.fstat(descriptor).st_nlink > 0


_KEPT: WeakSet[KeptFile] = WeakSet()


def _begin_anew() -> None:
    """A fork would share the locks of open files with its parent."""
    for file in _KEPT:
        file.close()


os.register_at_fork(after_in_child=_begin_anew)
