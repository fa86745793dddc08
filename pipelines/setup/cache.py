"""The configured cache, in a folder or at a URL."""

from __future__ import annotations

from flcache.cache.storage import Location, Store, open_store
from flcache.config import Config


def cache_store(config: Config, location: Location | None = None) -> Store:
    """The store of `cache.dir`, or of the cache at `location`. Raises ConfigError where none is configured."""
    where = config.require("cache.dir") if location is None else location
    return open_store(where, local_dir=config.cache.local_dir, local_bytes=config.cache.local_bytes)
