"""A file or folder at a URL of any store that fsspec knows; and `Place`, where lists and videos may be.

What lies below a URL is listed once. A file is read from a copy on this machine, which is whole and checked. One that
was replaced since it was listed is read as it is now, as a local file would be.
"""

from __future__ import annotations

import errno
import fnmatch
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

from flcache.errors import RemoteError
from flcache.remote import DEFAULT_BYTES, DiskCache, Entry, RemoteFile, RemoteFiles, default_folder, is_url


@dataclass(frozen=True)
class RemotePath:
    """A file or folder at a URL; as much of `pathlib.Path` as lists and roots of videos need."""

    top: str
    """The URL that is listed to find it."""
    below: str
    """Its name below `top`; empty for `top` itself."""
    disk: DiskCache | None = None
    """Where copies are kept; None in a worker, which is given one."""
    entry: Entry | None = None
    """The file as it was listed, if it was."""
    copy: Path | None = None
    """The file on this machine, while somebody holds it there."""

    def __str__(self) -> str:
        return f"{self.top}/{self.below}" if self.below else self.top

    def __truediv__(self, name: str) -> RemotePath:
        below = posixpath.normpath(posixpath.join(self.below, name))
        return RemotePath(self.top, "" if below == "." else below, self.disk)

    @property
    def name(self) -> str:
        return str(self).rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        if not self.below:
            return RemotePath(posixpath.dirname(self.top), "", self.disk)
        return RemotePath(self.top, posixpath.dirname(self.below), self.disk)

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def at(self, url: str) -> RemotePath:
        """What is at another URL; listed together with this where that has it."""
        below = url.removeprefix(f"{self.top}/")
        return RemotePath(url, "", self.disk) if below == url else RemotePath(self.top, below, self.disk)

    def is_file(self) -> bool:
        return self.below in _listing(self.top).entries

    def is_dir(self) -> bool:
        return self.below in _listing(self.top).folders

    def names(self) -> list[str]:
        """The files in this folder, without those of folders in it; none where there is no such folder."""
        return list(_listing(self.top).folders.get(self.below, ()))

    def iterdir(self) -> Iterator[RemotePath]:
        """Only the files."""
        return (self / name for name in self.names())

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Only files in this very folder."""
        return (self / name for name in fnmatch.filter(self.names(), pattern))

    def names_below(self) -> list[str]:
        """All files below this folder, relative to it."""
        start = f"{self.below}/" if self.below else ""
        return [name.removeprefix(start) for name in _listing(self.top).entries if name.startswith(start)]

    def listed(self) -> RemotePath:
        """The same file with its `entry`. Raises FileNotFoundError where there is none."""
        return replace(self, entry=self._entry())

    @property
    def num_bytes(self) -> int:
        """As listed."""
        return self._entry().size

    def read_bytes(self) -> bytes:
        with self.listed().copied() as copied:
            assert copied.copy is not None
            return copied.copy.read_bytes()

    @contextmanager
    def copied(self) -> Iterator[RemotePath]:
        """The same file with a copy that stays here during the block.

        Raises FileNotFoundError where there is no such file, RemoteError if it cannot be fetched, CacheError where the
        disk has no room for it.
        """
        with ExitStack() as held:
            yield self._held(held)

    def _held(self, held: ExitStack) -> RemotePath:
        assert self.disk is not None, f"{self} is read through a disk cache"
        folder, name = (self.top, self.below) if self.below else posixpath.split(self.top)
        files = RemoteFiles(folder)
        entry = self.entry or files.entry(name)
        while entry is not None:
            file = RemoteFile(files, name, entry)
            try:
                held.enter_context(self.disk.open(file))
                return replace(self, entry=entry, copy=self.disk.path(file))
            except (FileNotFoundError, RemoteError):
                earlier, entry = entry, files.entry(name)
                if entry == earlier:
                    raise
        raise self._missing()

    def _entry(self) -> Entry:
        if (entry := _listing(self.top).entries.get(self.below)) is None:
            raise self._missing()
        return entry

    def _missing(self) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, "No such file", str(self))


Place = Path | RemotePath
"""Where a list, a folder of videos or a file of them is."""


def place(location: str, disk: DiskCache | None = None, root: Place | None = None) -> Place:
    """The path or URL `location`. Copies are kept in `disk`; what lies below `root` is listed together with it."""
    if not is_url(location):
        return Path(location)
    here = RemotePath(location.rstrip("/"), "", disk or DiskCache(default_folder(), DEFAULT_BYTES))
    return root.at(str(here)) if isinstance(root, RemotePath) else here


def look_again() -> None:
    """Forget what was listed."""
    _listing.cache_clear()


@dataclass(frozen=True)
class _Listing:
    """What lies at a URL and below it, by name relative to it."""

    entries: Mapping[str, Entry]
    folders: Mapping[str, list[str]]
    """The names of the files in each folder."""


@lru_cache(maxsize=64)
def _listing(url: str) -> _Listing:
    files = RemoteFiles(url)
    if entry := files.entry(""):
        return _Listing({"": entry}, {})
    entries, folders = files.entries(), dict[str, list[str]]()
    for path in entries:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    for folder in list(folders):
        while folder:
            folder = posixpath.dirname(folder)
            folders.setdefault(folder, [])
    return _Listing(entries, folders)
