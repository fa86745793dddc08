"""A cache at a URL, of any store that fsspec knows. Its files are read through a disk cache that all processes share.

A file is written to a local spool, sent, and compared with what then lies there. Names there are whole or absent, as in
a folder. Locks, and the files that killed writers leave, are those of the spool, and so of this machine alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from pathlib import Path
from threading import Lock

import xxhash

from flcache.cache.storage.kept import KeptFile
from flcache.cache.storage.local import LocalStore, TemporaryFile
from flcache.cache.storage.store import check_name
from flcache.errors import CacheError, DamagedError
from flcache.remote import (
    DEFAULT_BYTES,
    Digest,
    DiskCache,
    Entry,
    RemoteFile,
    RemoteFiles,
    default_folder,
    digest_of,
)

THREADS = 32
"""Small files that are read at once."""
PIECE_BYTES = 16 * 2**20
"""Of a file that is read where it lies, by one request."""


class RemoteStore:
    """The files below `url`; at most `local_bytes` of them are kept in `local_dir`."""

    def __init__(self, url: str, local_dir: Path | None = None, local_bytes: int = DEFAULT_BYTES) -> None:
        folder = local_dir or default_folder()
        self._files, self._disk = RemoteFiles(url), DiskCache(folder, local_bytes)
        self._spool = LocalStore(folder / "spool" / xxhash.xxh3_64_hexdigest(self._files.url.encode()))
        self._keeps = True
        self._entries: dict[str, Entry] = {}
        """Of files as they were last listed, or asked for."""

    def __str__(self) -> str:
        return self._files.url

    @property
    def ahead_bytes(self) -> int:
        """Half of the disk cache: what comes must not drive out what is being read."""
        return self._disk.limit_bytes // 2

    def exists(self, name: str) -> bool:
        return self._asked(name) is not None

    def size(self, name: str, *, digest: Digest | None = None) -> int | None:
        if digest is not None and self._keeps:
            return digest.bytes
        entry = self._entries.get(name) or self._asked(name)
        return entry.size if entry else None

    def names(self, folder: str = "") -> Iterator[str]:
        found = self._files.entries(folder)
        self._entries.update(found)
        return iter(found)

    def unpublished(self) -> Iterator[str]:
        return self._spool.unpublished()

    def read(self, name: str, limit: int, *, digest: Digest | None = None) -> bytes:
        with self._missing_named(name, known=digest is not None):
            return self._read(self._found(name, digest), limit)

    def read_all(self, names: Sequence[str], limit: int) -> list[bytes]:
        def read(name: str) -> bytes:
            with self._missing_named(name):
                entry = self._entries.get(name)
                return self._read(RemoteFile(self._files, name, entry) if entry else self._found(name), limit)

        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(read, names))

    def read_part(self, name: str, offset: int, num_bytes: int) -> bytes:
        with self._missing_named(name):
            return self._files.read_part(name, offset, offset + num_bytes)

    def open(self, name: str, *, sequential: bool = False, digest: Digest | None = None) -> KeptFile | DirectFile:
        with self._missing_named(name):
            file = self._found(name, digest)
        return KeptFile(self._disk, file) if self._keeps and not sequential else DirectFile(file)

    def write(self, name: str, content: bytes) -> None:
        check_name(self, name)
        self._files.write(name, content)
        self._entries.pop(name, None)

    def write_new(self, name: str, content: bytes) -> bool:
        check_name(self, name)
        self._entries.pop(name, None)
        return self._files.write_new(name, content)

    def create(self, name: str) -> SpooledFile:
        self._entries.pop(name, None)
        return SpooledFile(self._spool.create(name), self._files, name)

    def move(self, name: str, to: str) -> bool:
        for file in (name, to):
            check_name(self, file)
            self._entries.pop(file, None)
        return self._files.move(name, to)

    def remove(self, name: str) -> None:
        check_name(self, name)
        self._entries.pop(name, None)
        self._files.remove(name)

    def remove_leftovers(self, name: str) -> None:
        self._spool.remove_leftovers(name)

    def lock(self, name: str, *, wait: bool = True) -> AbstractContextManager[bool]:
        return self._spool.lock(name, wait=wait)

    def direct(self) -> RemoteStore:
        store = copy(self)
        store._keeps = False
        return store

    def _asked(self, name: str) -> Entry | None:
        check_name(self, name)
        self._entries.pop(name, None)
        entry = self._files.entry(name)
        if entry is not None:
            self._entries[name] = entry
        return entry

    def _found(self, name: str, digest: Digest | None = None) -> RemoteFile:
        """The file, as it is there or as its digest says. Raises FileNotFoundError where it is not there."""
        if digest is not None:
            return RemoteFile(self._files, name, Entry(digest.bytes, ""), digest.xxh3_64)
        entry = self._asked(name)
        if entry is None:
            raise FileNotFoundError(name)
        return RemoteFile(self._files, name, entry)

    def _read(self, file: RemoteFile, limit: int) -> bytes:
        if not self._keeps:
            return self._files.read(file.name, limit)
        if file.entry.size > limit:
            raise DamagedError(f"{file}: more than {limit} bytes, and so none of this format")
        with self._disk.open(file) as descriptor:
            return os.pread(descriptor, file.entry.size, 0)

    @contextmanager
    def _missing_named(self, name: str, *, known: bool = False) -> Iterator[None]:
        """A file that is not there is an error of one line; damage where it is `known` that it should be."""
        try:
            yield
        except FileNotFoundError:
            raise (DamagedError if known else CacheError)(f"{self}/{name}: no such file") from None


class DirectFile:
    """A StoredFile that is read where it lies, in large pieces; best from front to back."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._lock = file, Lock()
        self._start, self._piece = 0, memoryview(b"")

    @property
    def num_bytes(self) -> int:
        return self._file.entry.size

    def read_into(self, offset: int, buffer: memoryview) -> int:
        with self._lock:
            if not self._start <= offset <= offset + len(buffer) <= self._start + len(self._piece):
                end = min(self.num_bytes, offset + max(len(buffer), PIECE_BYTES))
                self._start, self._piece = offset, memoryview(self._read(offset, end))
            part = self._piece[offset - self._start :][: len(buffer)]
            buffer[: len(part)] = part
            return len(part)

    def will_need(self, offset: int, num_bytes: int) -> None:
        """Does nothing: it is read once."""

    def close(self) -> None:
        self._piece = memoryview(b"")

    def _read(self, start: int, end: int) -> bytes:
        try:
            return self._file.files.read_once(self._file.name, start, end)
        except FileNotFoundError:
            raise DamagedError(f"{self._file}: is not there") from None


class SpooledFile:
    """A NewFile that is written here and sent whole."""

    def __init__(self, spooled: TemporaryFile, files: RemoteFiles, name: str) -> None:
        self._spooled, self._files, self._name = spooled, files, name

    def write(self, content: bytes | memoryview) -> None:
        self._spooled.write(content)

    def publish(self) -> None:
        path = self._spooled.written()
        self._files.put_checked(path, self._name, digest_of(path))
        self.discard()

    def discard(self) -> None:
        self._spooled.discard()
