"""Where the files of a cache lie. Nothing else in `flcache.cache` opens them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from flcache.cache.storage.local import LocalStore
from flcache.cache.storage.remote import RemoteStore
from flcache.cache.storage.store import Folder, Location, NewFile, Store, StoredFile
from flcache.errors import CacheError
from flcache.remote import DEFAULT_BYTES, is_url

__all__ = [
    "DEFAULT_BYTES",
    "Folder",
    "LocalStore",
    "Location",
    "NewFile",
    "RemoteStore",
    "Store",
    "StoredFile",
    "local_path",
    "open_store",
]


def open_store(location: Location, *, local_dir: str | None = None, local_bytes: int = DEFAULT_BYTES) -> Store:
    """The store of the cache at `location`, which need not exist yet; a Store is returned as it is.

    Of a URL at most `local_bytes` are kept in the folder `local_dir`, by default `~/.cache/flcache`.
    """
    if not isinstance(location, str | PathLike):
        return location
    if is_url(location):
        return RemoteStore(str(location), Path(local_dir) if local_dir else None, local_bytes)
    return LocalStore(Path(location))


def local_path(store: Store) -> Folder:
    """The folder of a local store, for tools that read its tars themselves. Raises CacheError for another store."""
    if not isinstance(store, LocalStore):
        raise CacheError(
            f"{store}: lies at a URL, and this reads tars in a folder; copy it there, or read it by LatentLoader"
        )
    return store.root
