"""Where the files of a cache lie. Nothing else in `flcache.cache` opens them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from flcache.cache.storage.local import LocalStore
from flcache.cache.storage.store import Location, NewFile, Store, StoredFile

__all__ = ["LocalStore", "Location", "NewFile", "Store", "StoredFile", "local_path", "open_store"]


def open_store(location: Location) -> Store:
    """The store of the cache at `location`, which need not exist yet; a Store is returned as it is."""
    return LocalStore(Path(location)) if isinstance(location, str | PathLike) else location


def local_path(store: Store) -> Path:
    """The folder of a local store, for tools that read its tars themselves."""
    return Path(str(store))
