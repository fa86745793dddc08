"""The files below a URL of any store that fsspec knows.

A request that fails is tried again with growing pauses. What is read is checked: a network, or a server on the way, may
lose or change bytes.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from flcache.errors import ConfigError, DamagedError, RemoteError
from flcache.remote.digest import Digest, digest_stream, md5_bytes, md5_stream
from flcache.sealed import one_line

T = TypeVar("T")

ATTEMPTS = 6
FIRST_PAUSE_S = 0.25
"""Doubled after each attempt."""
TRANSFERS = 4
"""Of a file that arrives as other bytes, before that is an error."""
CHUNK_BYTES = 16 * 2**20
"""A file is fetched in equal pieces of at least this size, several at once."""
CHUNK_THREADS = 4
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_FOR_GOOD = (PermissionError, IsADirectoryError, NotADirectoryError)
"""Failures that another attempt does not mend."""
_TOKENS = ("ETag", "md5Hash", "etag", "blob_id", "generation", "LastModified", "last_modified", "mtime", "created")
"""What stores say of a file that changes with its content; the best first."""


def is_url(location: object) -> bool:
    """Whether `location` is a URL such as `s3://bucket/folder`; a path never is."""
    return isinstance(location, str) and re.match(r"[A-Za-z][A-Za-z0-9+.:-]*://", location) is not None


@dataclass(frozen=True)
class Entry:
    """A file as its store lists it."""

    size: int
    token: str
    """Another file of that name has another: the ETag, the md5, or the time it was written."""

    @property
    def md5(self) -> str | None:
        """Of the content, if `token` may be one. The ETag of a file that S3 has encrypted looks like one and is none,
        so only an md5 that is equal says anything."""
        token = self.token.strip('"').lower()
        if re.fullmatch(r"[0-9a-f]{32}", token):
            return token
        try:  # Google writes it so
            raw = base64.b64decode(self.token, validate=True)
        except (binascii.Error, ValueError):
            return None
        return raw.hex() if len(raw) == 16 else None


class RemoteFiles:
    """The files below `url`, by names relative to it. Credentials are those that the store's own library finds.

    Safe from many threads and after a fork; can be pickled. Raises ConfigError for a URL of an unknown kind, or one
    whose library is not installed; FileNotFoundError where a file is missing; RemoteError where the store fails for
    good.
    """

    def __init__(self, url: str, *, attempts: int = ATTEMPTS) -> None:
        self.url, self._attempts = url.rstrip("/"), attempts
        _connect(self.url, os.getpid())

    def __str__(self) -> str:
        return self.url

    def is_there(self, timeout_s: float) -> bool:
        """Whether anything lies at the URL: asked once, without patience. Raises what the store's own library does."""
        try:
            self._fsspec.info(self._place(""), timeout=timeout_s)
        except FileNotFoundError:
            return False
        return True

    def entry(self, name: str) -> Entry | None:
        """The file as it is now; None if there is none."""

        def ask() -> Mapping[str, Any]:
            self._fsspec.invalidate_cache()
            found: Mapping[str, Any] = self._fsspec.info(self._place(name))
            return found

        try:
            found = self._patiently(name, ask)
        except FileNotFoundError:
            return None
        return _entry(found) if found["type"] == "file" else None

    def entries(self, folder: str = "") -> dict[str, Entry]:
        """All files below `folder`, by name.

        A listing has no digest, so that two must agree; of files that come and go meanwhile those are given that two
        of the listings have.
        """
        listings: list[frozenset[tuple[str, Entry]]] = []
        while len(listings) < TRANSFERS:
            listings.append(self._patiently(folder, partial(self._list, folder)))
            if listings[-1] in listings[:-1]:
                return dict(listings[-1])
        seen = Counter(found for listing in listings for found in listing)
        return dict(found for found, times in seen.items() if times > 1)

    def read(self, name: str, limit: int, entry: Entry | None = None) -> bytes:
        """A small file, which lies there as `entry` says if that is known. Raises DamagedError above `limit` bytes.

        Two readings must agree where the store has no md5 of the file.
        """
        seen = set()
        for _ in range(TRANSFERS):
            entry = entry or self.entry(name)
            if entry is None:
                raise FileNotFoundError(self._where(name))
            if entry.size > limit:
                raise DamagedError(f"{self._where(name)}: more than {limit} bytes, and so none of this format")
            content = self.read_once(name, 0, entry.size)
            md5 = md5_bytes(content)
            if md5 == entry.md5 or md5 in seen:
                return content
            seen.add(md5)
            entry = None  # it may have been replaced
        raise self._spoiled(name)

    def read_part(self, name: str, start: int, end: int) -> bytes:
        """The bytes from `start` until `end`, as two readings agree."""
        seen = set()
        for _ in range(TRANSFERS):
            content = self.read_once(name, start, end)
            if content in seen:
                return content
            seen.add(content)
        raise self._spoiled(name)

    def read_once(self, name: str, start: int, end: int) -> bytes:
        """As `read_part`, unchecked."""

        def read() -> bytes:
            content: bytes = self._fsspec.cat_file(self._place(name), start=start, end=end)
            if len(content) != end - start:
                raise OSError(f"ends {end - start - len(content)} bytes early")
            return content

        return self._patiently(name, read) if end > start else b""

    def fetch(self, name: str, size: int, descriptor: int) -> None:
        """The first `size` bytes of a file, into an open local file. What arrives is for the caller to check."""

        def fetch(start: int, end: int) -> None:
            content = memoryview(self.read_once(name, start, end))
            while content:
                written = os.pwrite(descriptor, content, start)
                content, start = content[written:], start + written

        count = max(1, size // CHUNK_BYTES)
        ends = [size * piece // count for piece in range(count + 1)]
        if count == 1:
            return fetch(0, size)
        with ThreadPoolExecutor(min(count, CHUNK_THREADS)) as threads:
            list(threads.map(fetch, ends, ends[1:]))

    def write(self, name: str, content: bytes) -> None:
        """Make `content` the file `name`, and check that it lies there.

        Stores show whole files only; a folder (`file://`) may show a part of it.
        """
        for _ in range(TRANSFERS):
            self._patiently(name, lambda: self._with_folder(name, lambda place: self._fsspec.pipe_file(place, content)))
            if self._holds(name, content):
                return
        raise self._spoiled(name)

    def write_new(self, name: str, content: bytes) -> bool:
        """As `write`; but if `name` exists nothing changes, and False is returned.

        One of many writers gets True where the store has exclusive writes, as S3 and Google have; elsewhere two at the
        same moment may. A request whose answer was lost counts as another's.
        """

        def create(place: str) -> None:
            try:
                self._fsspec.pipe_file(place, content, mode="create")
            except OSError as error:
                if _is_refused(error):
                    raise FileExistsError(place) from None
                raise

        if self.entry(name) is not None:
            return False
        try:
            self._patiently(name, lambda: self._with_folder(name, create))
        except FileExistsError:
            return False
        if not self._holds(name, content):
            self.write(name, content)
        return True

    def put(self, path: Path, name: str) -> None:
        """Send a local file."""
        send = partial(self._with_folder, name, lambda place: self._fsspec.put_file(str(path), place))
        self._patiently(name, send)

    def put_checked(self, path: Path, name: str, digest: Digest, *, read_back: bool = True) -> None:
        """Send a local file of this digest until it lies there as it is here.

        Known by its size and md5, where the store has one; else it is read back, unless that is off.
        """
        for _ in range(TRANSFERS):
            self.put(path, name)
            entry = self.entry(name)
            if entry is None or entry.size != digest.bytes:
                continue
            if not read_back or _has_md5(path, entry) or self.digest(name) == digest:
                return
        raise RemoteError(f"{self._where(name)}: arrives as other bytes than were sent, {TRANSFERS} times over")

    def get(self, name: str, path: Path) -> None:
        self._patiently(name, lambda: self._fsspec.get_file(self._place(name), str(path)))

    def move(self, name: str, to: str) -> bool:
        """Rename a file there, replacing what is at `to`, by a copy; False if there is no `name`."""
        entry = self.entry(name)
        if entry is None:
            return False
        copy = partial(self._with_folder, to, lambda place: self._fsspec.cp_file(self._place(name), place))
        for _ in range(TRANSFERS):
            self._patiently(to, copy)
            there = self.entry(to)
            if there is not None and there.size == entry.size:
                self.remove(name)
                return True
        raise self._spoiled(to)

    def remove(self, name: str) -> None:
        """Delete the file, if there is one."""
        try:
            self._patiently(name, lambda: self._fsspec.rm_file(self._place(name)))
        except FileNotFoundError:
            return

    def digest(self, name: str) -> Digest:
        """Of a file as it is there, read back."""

        def read() -> Digest:
            self._fsspec.invalidate_cache()
            with self._fsspec.open(self._place(name), "rb") as stream:
                return digest_stream(stream)

        return self._patiently(name, read)

    @property
    def _fsspec(self) -> Any:
        return _connect(self.url, os.getpid())[0]

    def _place(self, name: str) -> str:
        root = _connect(self.url, os.getpid())[1]
        return f"{root}/{name}" if name else root

    def _where(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _list(self, folder: str) -> frozenset[tuple[str, Entry]]:
        self._fsspec.invalidate_cache()
        below = f"{self._place('')}/"
        try:
            found = self._fsspec.find(self._place(folder), detail=True)
        except FileNotFoundError:
            return frozenset()
        names = ((place.removeprefix(below), info) for place, info in found.items())
        return frozenset((name, _entry(info)) for name, info in names if info["type"] == "file")

    def _holds(self, name: str, content: bytes) -> bool:
        """Whether the file is there with this content, by its size and its md5, or else read back."""
        entry = self.entry(name)
        if entry is None or entry.size != len(content):
            return False
        return entry.md5 == md5_bytes(content) or self.read_once(name, 0, entry.size) == content

    def _with_folder(self, name: str, use: Callable[[str], T]) -> T:
        """`use` of the place of `name`, whose folder is made where the store has folders and lacks it."""
        place = self._place(name)
        try:
            return use(place)
        except FileNotFoundError:
            folder = place.rpartition("/")[0]
            try:
                self._fsspec.makedirs(folder, exist_ok=True)
            except FileExistsError:
                raise NotADirectoryError(f"{folder} is a file") from None
            return use(place)

    def _patiently(self, name: str, ask: Callable[[], T]) -> T:
        for attempt in range(self._attempts):
            try:
                return ask()
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:  # each store has exceptions of its own
                if attempt == self._attempts - 1 or isinstance(error, _FOR_GOOD):
                    again = "mend that, then run the same command again: it goes on"
                    raise RemoteError(f"{self._where(name)}: {one_line(error)}; {again}") from None
                time.sleep(FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    def _spoiled(self, name: str) -> RemoteError:
        return RemoteError(f"{self._where(name)}: arrives as other bytes each time, {TRANSFERS} times over; try again")


@lru_cache(maxsize=64)
def _connect(url: str, process: int) -> tuple[Any, str]:
    """The file system of `url`, and where in it `url` is. One for each `process`: none survives a fork."""
    import fsspec  # where no URL is used it is not loaded

    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(url.split(":", 1)[0])
        mend = f'pip install "flcache[{extra}]"' if extra else "install the library that it names"
        raise ConfigError(f"{url}: {one_line(error)}; {mend}") from None
    except ValueError as error:
        raise ConfigError(f"{url}: {one_line(error)}; such as s3://bucket/folder") from None
    return files, root.rstrip("/")


def _entry(info: Mapping[str, Any]) -> Entry:
    token = next((info[key] for key in _TOKENS if info.get(key)), "")
    if isinstance(token, datetime):  # a listing may have the same time as a number
        token = token.timestamp()
    return Entry(int(info["size"]), str(token))


def _is_refused(error: OSError) -> bool:
    """Whether S3 has answered that the condition of a request does not hold: s3fs knows it of Amazon only."""
    answer = getattr(error.__cause__, "response", {})
    return bool(answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412)


def _has_md5(path: Path, entry: Entry) -> bool:
    if entry.md5 is None:
        return False
    with path.open("rb") as stream:
        return md5_stream(stream) == entry.md5
