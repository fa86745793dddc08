"""What a cache asks of its storage: a few operations on whole files, by name.

A name is relative to the cache and uses `/`: `plan.parquet`, `shards/train-000000.tar`. Every failure is a CacheError
of one line. `str(store)` is the folder or URL of the cache, as messages show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from flcache.errors import CacheError
from flcache.remote import Digest


class StoredFile(Protocol):
    """A file open for reading any part of it, from many threads. It closes with `close` or the last reference."""

    @property
    def num_bytes(self) -> int:
        """Of this file, whatever has its name by now."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset` on; returns the bytes read, fewer only where the file ends."""

    def will_need(self, offset: int, num_bytes: int) -> None:
        """Start to fetch what `read_into` will ask for; returns at once."""

    def close(self) -> None: ...


class NewFile(Protocol):
    """A file that is being written. It has its name only after `publish`; `discard` drops it."""

    def write(self, content: bytes | memoryview) -> None: ...

    def publish(self) -> None:
        """Give the file its name, replacing a file of that name. When this returns it survives a power failure."""

    def discard(self) -> None:
        """Drop what is not published; does nothing after `publish`, and never raises."""


class Store(Protocol):
    """The files of one cache. Safe from many threads and processes; a name always stands for a whole file."""

    @property
    def ahead_bytes(self) -> int:
        """How much a reader may ask for by `will_need` before it reads it; 0 where nothing needs to be fetched."""

    def exists(self, name: str) -> bool: ...

    def size(self, name: str, *, digest: Digest | None = None) -> int | None:
        """Bytes of the file `name`, now or when it was last listed; None if there is none.

        A store that compares what it fetches with the `digest` need not ask: it may trust that until then.
        """

    def names(self, folder: str = "") -> Iterator[str]:
        """The files below `folder`, in any order."""

    def unpublished(self) -> Iterator[str]:
        """Files that running or killed writers have not published, under temporary names."""

    def read(self, name: str, limit: int, *, digest: Digest | None = None) -> bytes:
        """All of a small file. Raises DamagedError if it is larger than `limit` bytes or no plain file.

        `digest` is what it should have: a store that keeps copies finds the right one by it. The caller checks.
        """

    def read_all(self, names: Sequence[str], limit: int) -> list[bytes]:
        """As `read` of each, several at once where that is faster."""

    def read_part(self, name: str, offset: int, num_bytes: int) -> bytes:
        """A small part of a file, without fetching the others."""

    def open(self, name: str, *, sequential: bool = False, digest: Digest | None = None) -> StoredFile:
        """The file `name` for reading; `sequential` says that it will be read once, from front to back.

        `digest` is as for `read`.
        """

    def write(self, name: str, content: bytes) -> None:
        """Make `content` the file `name`, whole or not at all."""

    def write_new(self, name: str, content: bytes) -> bool:
        """As `write`; but if `name` exists nothing changes, and False is returned. Of many writers one gets True."""

    def create(self, name: str) -> NewFile:
        """Begin the file `name`."""

    def move(self, name: str, to: str) -> bool:
        """Rename the file, replacing what is at `to`; False, and nothing changed, if there is no `name`."""

    def remove(self, name: str) -> None:
        """Delete the file, if there is one."""

    def remove_leftovers(self, name: str) -> None:
        """Delete the unpublished files of killed writers of `name`, but not those of living ones."""

    def lock(self, name: str, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Hold the lock of `name`, exclusive among threads and processes, until the block or the process ends.

        Gives True; with `wait=False`, False where another holds it now. The lock is advisory and not reentrant. A store
        without locks always gives True. At a URL it is among the processes of one machine.
        """

    def direct(self) -> Store:
        """The same files without copies of them: what is read is what lies there now."""


def check_name(store: Store, name: str) -> None:
    """Raises CacheError unless `name` is that of a file below the store."""
    if not name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise CacheError(f"{store}: {name!r} is not the name of a file below it")


Folder = Path
Location = str | Path | Store
"""How users name a cache: by its folder, its URL or a Store."""
