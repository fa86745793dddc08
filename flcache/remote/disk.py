"""Files of remote stores on a local disk: fetched once for all processes of a node, and never more than a limit.

A file is fetched under a temporary name, checked, and renamed, so that whatever has a final name is whole. The name is
made of where the file lies and of what its store says of the content: a file that is replaced there has another name
here. Space is claimed under the lock of the folder before anything is written. The files that were used longest ago
make room. Who fetches or reads a file holds a lock on it, which ends with the process: an unlocked temporary file is
what a killed run left, and an unlocked file may go.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import xxhash

from flcache.errors import CacheError, DamagedError, RemoteError
from flcache.remote.digest import digest_stream, md5_stream
from flcache.remote.files import TRANSFERS, Entry, RemoteFiles

DEFAULT_BYTES = 64 * 2**30
LEDGER = ".ledger"
"""Locked while space is claimed; it holds the bytes that are claimed, or more."""
PARTIAL = ".part"
_TWICE_BYTES = 64 * 2**20
"""Up to this size a file that has no digest is fetched twice."""
_SLACK = 64
"""Files go until this part of the limit is free besides, so that not every new file looks through the folder."""
TOUCH_S = 1.0
"""Files are ordered by when they were used, to this precision."""
_WAIT_S = 600.0
_PAUSE_S = 0.02


@dataclass(frozen=True)
class RemoteFile:
    """One file of a store, as it was when `entry` was asked for."""

    files: RemoteFiles
    name: str
    entry: Entry
    xxh3_64: str | None = None
    """The digest it must have, if that is known."""

    def __str__(self) -> str:
        return f"{self.files.url}/{self.name}"

    @cached_property
    def key(self) -> str:
        """Its name on the disk, with the suffix that it has."""
        identity = f"{self}\0{self.entry.size}\0{self.entry.token}\0{self.xxh3_64 or ''}"
        suffix = re.search(r"\.[A-Za-z0-9]{1,8}$", self.name)
        return xxhash.xxh3_128_hexdigest(identity.encode()) + (suffix[0] if suffix else "")


@dataclass(frozen=True)
class DiskCache:
    """At most `limit_bytes` of remote files in `folder`, which is for nothing else."""

    folder: Path
    limit_bytes: int

    @contextmanager
    def open(self, file: RemoteFile) -> Iterator[int]:
        """A descriptor of the whole, checked file, fetched if it is not here; nobody removes it during the block.

        Its path is `path(file)`. Raises CacheError if the limit is below its size, RemoteError or FileNotFoundError if
        it cannot be fetched, DamagedError if it never arrives as its digest says.
        """
        descriptor = self.hold(file)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def path(self, file: RemoteFile) -> Path:
        """Where the file is while it is open."""
        return self.folder / file.key

    def fetch(self, file: RemoteFile) -> None:
        """Have the file here, if there is no reason to remove it soon."""
        with self.open(file):
            pass

    def hold(self, file: RemoteFile) -> int:
        """As `open`, for the caller to close: a context manager costs as much as the rest where the file is here."""
        name = f"{self.folder}/{file.key}"
        try:
            while (descriptor := _open_locked(name)) is None and (descriptor := self._fetch(file, Path(name))) is None:
                pass
        except FileNotFoundError:  # in its store
            raise
        except OSError as error:
            problem = f"{error.filename or name}: {error.strerror or error}"
            raise CacheError(f"{problem}; mend that, or choose another cache.local_dir") from error
        return descriptor

    def _fetch(self, file: RemoteFile, path: Path) -> int | None:
        """As `hold`; None if another fetches the file, after a pause, has fetched it by now, or removes it at once."""
        partial = path.with_name(path.name + PARTIAL)
        descriptor = self._begin(partial)
        if descriptor is None:
            time.sleep(_PAUSE_S)
            return None
        try:
            if not path.exists():
                self._claim(file, descriptor)
                _fill(file, descriptor)
                os.fsync(descriptor)
                with self._ledger():  # else who counts the files meanwhile may see it by neither name
                    partial.rename(path)
                fcntl.flock(descriptor, fcntl.LOCK_SH)  # for a moment there is no lock at all
                if _is_at(descriptor, path):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _begin(self, partial: Path) -> int | None:
        """A descriptor of the temporary file, empty and locked; None if another has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if _try_lock(descriptor) and _is_at(descriptor, partial):
            os.ftruncate(descriptor, 0)  # what a killed run left
            return descriptor
        os.close(descriptor)
        return None

    def _claim(self, file: RemoteFile, descriptor: int) -> None:
        """Give the open file its size on the disk, as soon as there is room for it."""
        size, give_up_s = file.entry.size, time.monotonic() + _WAIT_S
        if size > self.limit_bytes:
            raise CacheError(
                f"{file}: has {size} bytes, and the disk cache {self.folder} holds {self.limit_bytes}; "
                f"set cache.local_bytes to {size} or more"
            )
        while time.monotonic() < give_up_s:
            with self._ledger() as ledger:
                if self._make_room(ledger, size):
                    _allocate(descriptor, size)
                    return
            time.sleep(_PAUSE_S)
        raise CacheError(
            f"{self.folder}: no room for {file} in {_WAIT_S:.0f} s: all files there are being read or fetched; "
            "raise cache.local_bytes"
        )

    def _make_room(self, ledger: int, size: int) -> bool:
        """Count `size` bytes as claimed, if they fit once unused files are removed."""
        text = os.pread(ledger, 32, 0)
        claimed = int(text) if text.isdigit() else self.limit_bytes
        if claimed + size > self.limit_bytes:
            claimed = self._remove_oldest(self.limit_bytes - size)
        fits = claimed + size <= self.limit_bytes
        os.ftruncate(ledger, 0)
        os.pwrite(ledger, str(claimed + size * fits).encode(), 0)
        return fits

    def _remove_oldest(self, room: int) -> int:
        """Remove what nobody uses until at most `room` bytes are left, if that is possible; returns those left."""
        found = []
        for item in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                status = item.stat()
                if item.name != LEDGER and item.is_file():
                    found.append((not item.name.endswith(PARTIAL), status.st_mtime, status.st_size, item.path))
        left = sum(size for _, _, size, _ in found)
        if left > room:
            room -= min(room, self.limit_bytes // _SLACK)
        for _, _, size, path in sorted(found):
            if left > room and _remove_unused(Path(path)):
                left -= size
        return left

    @contextmanager
    def _ledger(self) -> Iterator[int]:
        descriptor = os.open(self.folder / LEDGER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/flcache`, or `~/.cache/flcache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flcache"


def _open_locked(path: str) -> int | None:
    """A descriptor with a shared lock of a file that is here; its time says that it was used. None if it is not here.

    An exclusive lock is held for a moment by who removes it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        if status.st_nlink:
            if time.time() - status.st_mtime > TOUCH_S:
                with suppress(OSError):  # of another user
                    os.utime(descriptor)
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _allocate(descriptor: int, size: int) -> None:
    """Space on the disk, not only a size, on systems that can."""
    if hasattr(os, "posix_fallocate"):
        if size:
            os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _fill(file: RemoteFile, descriptor: int) -> None:
    """Fetch the content until it is right."""
    seen: set[str] = set()
    for _ in range(TRANSFERS):
        file.files.fetch(file.name, file.entry.size, descriptor)
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            stream.seek(0)
            if _is_right(file, stream, seen):
                return
    problem = f"{file}: arrives as other bytes than were written, {TRANSFERS} times over"
    raise RemoteError(f"{problem}; try again") if file.xxh3_64 is None else DamagedError(problem)


def _is_right(file: RemoteFile, stream: BinaryIO, seen: set[str]) -> bool:
    """Whether the content has its digest or its md5; without them, whether it came a second time or is large.

    Raises FileNotFoundError if it is that of another file, which has replaced this one.
    """
    if file.xxh3_64 is not None:
        return digest_stream(stream).xxh3_64 == file.xxh3_64
    md5 = md5_stream(stream)
    if md5 == file.entry.md5:
        return True
    right = md5 in seen or (file.entry.md5 is None and file.entry.size > _TWICE_BYTES)
    if right and file.files.entry(file.name) != file.entry:
        raise FileNotFoundError(errno.ENOENT, "It was replaced", str(file))
    seen.add(md5)
    return right


def _remove_unused(path: Path) -> bool:
    """Whether the file is gone; it stays while somebody has locked it. It goes empty, since a reader between two reads
    may have it open."""
    try:
        descriptor = _open_to_empty(path)
    except OSError:
        return False
    try:
        if not _try_lock(descriptor):
            return False
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        with suppress(FileNotFoundError):
            path.unlink()
        return True
    finally:
        os.close(descriptor)


def _open_to_empty(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:  # another user's: its readers find it gone when they open it again
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file still has that name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
