"""Files that are whole or absent, and where each file of a cache lies.

A file is written under a temporary name in its own folder, synced, renamed, and the folder synced. A temporary is
locked by its writer, and the lock dies with the process: what a killed run left is told from what another job is
writing right now.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

from flcache.errors import CacheError

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
_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_SHARD_NAME = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_-]*)-([0-9]{6,})")


@dataclass(frozen=True)
class ShardPaths:
    """The four files of the shard `name`; each path is made when it is asked for, as a cache may have many shards."""

    cache_dir: Path
    name: str

    @property
    def tar(self) -> Path:
        return self.cache_dir / "shards" / f"{self.name}.tar"

    @property
    def idx(self) -> Path:
        return self.cache_dir / "shards" / f"{self.name}.idx"

    @property
    def commit(self) -> Path:
        return self.cache_dir / "commits" / f"{self.name}.json"

    @property
    def failures(self) -> Path:
        return self.cache_dir / "failures" / f"{self.name}.jsonl"


def shard_paths(cache_dir: Path, split: str, shard: int) -> ShardPaths:
    return ShardPaths(cache_dir, shard_name(split, shard))


def shard_name(split: str, shard: int) -> str:
    """`train-000123`. Raises CacheError for a split that is no plain word."""
    if not _SPLIT.fullmatch(split):
        raise CacheError(f"split {split!r}: a split's name is made of letters, digits, `_` and `-`")
    return f"{split}-{shard:06d}"


def parse_shard_name(name: str) -> tuple[str, int] | None:
    """The split and shard of `train-000123`; None for any other name."""
    match = _SHARD_NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else None


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a CacheError that says what to do."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> CacheError:
    """What to raise for an OSError about `path`; for where a context manager costs too much."""
    advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    return CacheError(f"{error.filename or path}: {advice}")


def is_file(path: Path) -> bool:
    """Whether `path` is a file. Raises CacheError where that cannot be seen."""
    with storage_errors(path):
        return path.is_file()


class TemporaryFile:
    """A file on its way to `final`, open for writing as `stream`. Ends with `publish` or `discard`."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        with storage_errors(final):
            make_folder(final.parent)
            remove_leftovers(final)
            self.stream = self._open_locked()

    def publish(self) -> None:
        """Give the file its final name; it is on the disk when this returns."""
        with storage_errors(self.final):
            self._sync()
            self.path.replace(self.final)
            self.stream.close()
            sync_folder(self.final.parent)

    def publish_new(self) -> bool:
        """As `publish`, but False, and nothing changed, if `final` exists by now."""
        with storage_errors(self.final):
            self._sync()
            try:
                os.link(self.path, self.final)
            except FileExistsError:
                return False
            except OSError:  # no hard links here
                if self.final.exists():
                    return False
                self.path.replace(self.final)
            sync_folder(self.final.parent)
            return True

    def discard(self) -> None:
        """Drop what was written and not published; harmless after `publish`."""
        with suppress(OSError):  # closing flushes, and fails again on a full disk
            self.stream.close()
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
        self.stream.flush()
        os.fsync(self.stream.fileno())


def write_file(final: Path, content: bytes) -> None:
    """`content` under the name `final`, whole or not at all. Raises CacheError."""
    temporary = TemporaryFile(final)
    try:
        with storage_errors(final):
            temporary.stream.write(content)
        temporary.publish()
    finally:
        temporary.discard()


def write_new_file(final: Path, content: bytes) -> bool:
    """As `write_file`, but False, and nothing changed, if `final` exists."""
    temporary = TemporaryFile(final)
    try:
        with storage_errors(final):
            temporary.stream.write(content)
        return temporary.publish_new()
    finally:
        temporary.discard()


def remove_leftovers(final: Path) -> None:
    """Delete temporaries of `final` whose writer is dead."""
    for leftover in final.parent.glob(f".{final.name}.*.tmp"):
        with suppress(OSError), leftover.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


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
