"""A folder of any store that fsspec knows. What fails is tried again with growing pauses."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import fsspec

from flcache.errors import CacheError, ConfigError
from flcache.sealed import one_line

from .manifest import MANIFEST, MAX_MANIFEST_BYTES, Digest, Manifest, digest_stream

T = TypeVar("T")

ATTEMPTS = 6
FIRST_PAUSE_S = 0.25
"""Doubled after each attempt."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_FOR_GOOD = (PermissionError, IsADirectoryError, NotADirectoryError)
"""Failures that another attempt does not mend."""


class Remote:
    """The folder at `url`. Credentials are those that the store's own library finds; none are kept.

    Raises ConfigError for a URL of an unknown kind, or one whose library is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._files, root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            extra = EXTRAS.get(self.url.split(":", 1)[0])
            mend = f'pip install "flcache[{extra}]"' if extra else "install the library that it names"
            raise ConfigError(f"{url}: {one_line(error)}; {mend}") from None
        except ValueError as error:
            raise ConfigError(f"{url}: {one_line(error)}; such as s3://bucket/folder") from None
        self._root = root.rstrip("/")

    def manifest(self) -> Manifest | None:
        """Of what was pushed here; None where nothing was."""
        where = f"{self.url}/{MANIFEST}"
        try:
            raw = self._patiently(where, lambda: self._files.cat_file(self._place(MANIFEST)))
        except FileNotFoundError:
            return None
        if len(raw) > MAX_MANIFEST_BYTES:
            raise CacheError(f"{where}: larger than {MAX_MANIFEST_BYTES} bytes; push again")
        return Manifest.parse(raw, where)

    def write(self, name: str, content: bytes) -> None:
        """A small file."""
        send = partial(self._with_folder, name, lambda place: self._files.pipe_file(place, content))
        self._patiently(f"{self.url}/{name}", send)

    def put(self, path: Path, name: str) -> None:
        send = partial(self._with_folder, name, lambda place: self._files.put_file(str(path), place))
        self._patiently(f"{self.url}/{name}", send)

    def get(self, name: str, path: Path) -> None:
        self._patiently(f"{self.url}/{name}", lambda: self._files.get_file(self._place(name), str(path)))

    def digest(self, name: str) -> Digest:
        """Of a file as it is there, read back."""

        def read() -> Digest:
            self._files.invalidate_cache()
            with self._files.open(self._place(name), "rb") as stream:
                return digest_stream(stream)

        return self._patiently(f"{self.url}/{name}", read)

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _with_folder(self, name: str, use: Callable[[str], T]) -> T:
        """`use` of the place of `name`, whose folder is made where the store has folders and lacks it."""
        place = self._place(name)
        try:
            return use(place)
        except FileNotFoundError:
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
            return use(place)

    def _patiently(self, where: str, ask: Callable[[], T]) -> T:
        """The answer. Raises FileNotFoundError where there is no such file, else CacheError."""
        for attempt in range(ATTEMPTS):
            try:
                return ask()
            except FileNotFoundError:
                raise
            except Exception as error:  # each store has exceptions of its own
                if attempt == ATTEMPTS - 1 or isinstance(error, _FOR_GOOD):
                    raise CacheError(
                        f"{where}: {one_line(error)}; mend that, then run the same command again: it goes on"
                    ) from None
                time.sleep(FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")
