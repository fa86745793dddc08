"""A cache in a folder. Its files are whole or absent, also after a kill or a power failure.

A file is written under a temporary name in its own folder, synced, renamed, and the folder synced. The writer holds a
lock on its temporary file. The lock ends with the process, so an unlocked temporary file is what a killed run left.
The lock of a name is a temporary file of a fixed name, which exists while the lock is held.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import ClassVar

from flcache.cache.storage.store import check_name
from flcache.errors import CacheError, DamagedError
from flcache.remote import Digest

_AGAIN = "then run the same command again: what is committed stays"
_ADVICE = {
    errno.ENOSPC: f"the disk is full; free some space, {_AGAIN}",
    errno.EDQUOT: f"the disk quota is used up; free some space, {_AGAIN}",
    errno.EFBIG: f'the file would exceed the allowed file size; raise it ("ulimit -f"), {_AGAIN}',
    errno.EACCES: "no permission; change the folder's permissions or choose another cache.dir",
    errno.EPERM: "no permission; change the folder's permissions or choose another cache.dir",
    errno.EROFS: "the file system is read-only; choose another cache.dir",
    errno.ENOTDIR: "a file lies where a folder is needed; choose another cache.dir",
    errno.EEXIST: "a file lies where a folder is needed; choose another cache.dir",
}
_LOCKABLE = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a CacheError that says what to do."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> CacheError:
    """What `storage_errors` raises, for reads, where a context manager costs too much."""
    advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    return CacheError(f"{error.filename or path}: {advice}")


@dataclass(frozen=True)
class LocalStore:
    """The files below the folder `root`, which is made when the first is written."""

    root: Path
    ahead_bytes: ClassVar[int] = 0

    def __str__(self) -> str:
        return str(self.root)

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def size(self, name: str, *, digest: Digest | None = None) -> int | None:
        path = self._path(name)
        with storage_errors(path), suppress(FileNotFoundError, NotADirectoryError):
            status = path.stat()
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        return None

    def names(self, folder: str = "") -> Iterator[str]:
        return (name for name in self._walk(folder) if not _is_temporary(name))

    def unpublished(self) -> Iterator[str]:
        return filter(_is_temporary, self._walk(""))

    def read(self, name: str, limit: int, *, digest: Digest | None = None) -> bytes:
        path = self._path(name)
        with storage_errors(path), os.fdopen(_open_plain(path), "rb") as stream:
            num_bytes = os.fstat(stream.fileno()).st_size
            if num_bytes > limit:
                raise DamagedError(f"{path}: more than {limit} bytes, and so none of this format")
            return stream.read(num_bytes)

    def read_all(self, names: Sequence[str], limit: int) -> list[bytes]:
        return [self.read(name, limit) for name in names]

    def read_part(self, name: str, offset: int, num_bytes: int) -> bytes:
        content = bytearray(num_bytes)
        with closing(self.open(name)) as file:
            return bytes(content[: file.read_into(offset, memoryview(content))])

    def open(self, name: str, *, sequential: bool = False, digest: Digest | None = None) -> LocalFile:
        path = self._path(name)
        with storage_errors(path):
            file = LocalFile(path, _open_plain(path))
        if sequential:
            file.advise(0, 0, "POSIX_FADV_SEQUENTIAL")
        return file

    def write(self, name: str, content: bytes) -> None:
        file = self.create(name)
        try:
            file.write(content)
            file.publish()
        finally:
            file.discard()

    def write_new(self, name: str, content: bytes) -> bool:
        file = self.create(name)
        try:
            file.write(content)
            return file.publish_new()
        finally:
            file.discard()

    def create(self, name: str) -> TemporaryFile:
        return TemporaryFile(self._path(name))

    def move(self, name: str, to: str) -> bool:
        source, target = self._path(name), self._path(to)
        with storage_errors(source):
            if not os.path.lexists(source):
                return False
            make_folder(target.parent)
            source.replace(target)
            for folder in {source.parent, target.parent}:
                sync_folder(folder)
        return True

    def remove(self, name: str) -> None:
        path = self._path(name)
        with storage_errors(path):
            if os.path.lexists(path):
                path.unlink(missing_ok=True)
                sync_folder(path.parent)

    def remove_leftovers(self, name: str) -> None:
        remove_leftovers(self._path(name))

    @contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        final = self._path(name)
        path = final.with_name(f".{final.name}.lock.tmp")
        with storage_errors(path):
            make_folder(path.parent)
            descriptor = _take_lock(path, wait=wait)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                with suppress(OSError):  # whoever takes the lock next removes it
                    path.unlink()
                os.close(descriptor)

    def direct(self) -> LocalStore:
        return self

    def _path(self, name: str) -> Path:
        check_name(self, name)
        return self.root / name

    def _walk(self, folder: str) -> Iterator[str]:
        """Every file below `folder`, temporary ones too."""
        top = self._path(folder) if folder else self.root
        with storage_errors(top):
            for parent, _, files in os.walk(top, onerror=_unless_missing):
                below = Path(parent).relative_to(self.root)
                yield from ((below / file).as_posix() for file in files)


class LocalFile:
    """A StoredFile: a read is one `preadv`, or more where the system gives less than was asked for."""

    _close = staticmethod(os.close)
    """`__del__` may run at interpreter exit, when the global `os` is gone."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def __del__(self) -> None:
        self.close()

    @property
    def num_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read_into(self, offset: int, buffer: memoryview) -> int:
        try:
            num_read = os.preadv(self._descriptor, [buffer], offset)
            while num_read < len(buffer):
                more = os.preadv(self._descriptor, [buffer[num_read:]], offset + num_read)
                if not more:
                    break
                num_read += more
        except OSError as error:
            raise storage_error(self._path, error) from error
        return num_read

    def will_need(self, offset: int, num_bytes: int) -> None:
        self.advise(offset, num_bytes, "POSIX_FADV_WILLNEED")

    def advise(self, offset: int, num_bytes: int, advice: str) -> None:
        """Tell the kernel, on systems that have `posix_fadvise`."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, num_bytes, getattr(os, advice))

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._close(descriptor)


class TemporaryFile:
    """A NewFile that becomes `final`. Ends with `publish`, `publish_new` or `discard`."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        with storage_errors(final):
            make_folder(final.parent)
            remove_leftovers(final)
            self._stream = self._open_locked()

    def write(self, content: bytes | memoryview) -> None:
        with storage_errors(self.final):
            self._stream.write(content)

    def written(self) -> Path:
        """The file under its temporary name, with all that was written."""
        with storage_errors(self.final):
            self._stream.flush()
        return self.path

    def publish(self) -> None:
        with storage_errors(self.final):
            self._sync()
            self.path.replace(self.final)
            self._stream.close()
            sync_folder(self.final.parent)

    def publish_new(self) -> bool:
        """As `publish`, but False, and nothing changed, if `final` exists by now."""
        with storage_errors(self.final):
            self._sync()
            try:
                os.link(self.path, self.final)
            except FileExistsError:
                os.close(_open_plain(self.final))  # raises where it is no plain file
                return False
            except OSError:  # no hard links here
                if self.final.exists():
                    return False
                self.path.replace(self.final)
            sync_folder(self.final.parent)
            return True

    def discard(self) -> None:
        with suppress(OSError):  # closing flushes, and fails again on a full disk
            self._stream.close()
        with suppress(OSError):  # the next run removes what cannot be removed now
            self.path.unlink()

    def _open_locked(self) -> BufferedWriter:
        while True:
            stream = self.path.open("xb")
            with suppress(OSError):  # a file system without locks: leftovers stay there
                fcntl.flock(stream, fcntl.LOCK_EX)
            if self.path.exists():  # else another job took it for a leftover before it was locked
                return stream
            stream.close()

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())


def remove_leftovers(final: Path) -> None:
    """Delete temporary files of `final` that no living process has locked."""
    for leftover in final.parent.glob(f".{final.name}.*.tmp"):
        with suppress(OSError), os.fdopen(os.open(leftover, _LOCKABLE), "r+b", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _take_lock(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock until it is closed; None if another holds it and `wait` is False."""
    while True:
        descriptor = os.open(path, _LOCKABLE | os.O_CREAT, 0o666)
        try:
            if not _flock(descriptor, wait=wait):
                os.close(descriptor)
                return None
            with suppress(FileNotFoundError):  # the previous holder may have removed it meanwhile
                if os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int, *, wait: bool) -> bool:
    """False if another holds the lock and `wait` is False."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def make_folder(folder: Path) -> None:
    """Create `folder` with its parents, each of them on the disk when this returns."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_plain(path: Path) -> int:
    """A descriptor for reading a regular file. Non-blocking: opening a pipe must not wait for its writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise DamagedError(f"{path}: no plain file, and so none of this format")


def _is_temporary(name: str) -> bool:
    file = name.rpartition("/")[2]
    return file.startswith(".") and file.endswith(".tmp")


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
