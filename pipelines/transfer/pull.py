"""flcache pull URL DIR: what was pushed, back into a folder; run again, it fetches what is missing or damaged."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.filesize import decimal

from flcache.cache.format.names import COMMITS
from flcache.cache.storage import open_store
from flcache.errors import CacheError
from flcache.remote import RemoteFiles, digest_of

from ..setup.progress import Progress
from .contents import identity_of, is_last
from .manifest import Manifest, manifest_at
from .push import WORKERS

_FETCHES = 3
"""Of a file that arrives as other bytes."""


def pull(url: str, directory: Path) -> None:
    """Fetch what was pushed to `url` into `directory`; every file is checked before it gets its name.

    Files that are there and whole are not fetched again. Raises CacheError if nothing was pushed there or the push is
    not finished, if `directory` holds something else, or if a file does not arrive as it was pushed.
    """
    remote = RemoteFiles(url)
    manifest = manifest_at(remote)
    if manifest is None:
        raise CacheError(f'{url}: no manifest.json: nothing was pushed here; "flcache push DIR {url}" does it')
    if not manifest.complete:
        raise CacheError(f"{url}: its push is not finished; run it again to the end, then pull")
    _check_folder(directory, manifest)
    store = open_store(directory)
    with store.lock("pull", wait=False) as alone:
        if not alone:
            raise CacheError(f"{directory}: another pull is at work here; let it finish")
        fetched = _fetch_all(remote, manifest, directory)
    size = decimal(sum(digest.bytes for digest in manifest.files.values()))
    print(f"{directory}: {len(manifest.files)} files, {size}; {fetched} fetched, the others were there")


def _check_folder(directory: Path, manifest: Manifest) -> None:
    """Raises CacheError where a cache or a model of another origin lies there."""
    found = identity_of(directory)
    if found is not None and found != (manifest.kind, manifest.identity):
        raise CacheError(f"{directory}: holds another {found[0]} ({found[1]}); pull into a folder of its own")


def _fetch_all(remote: RemoteFiles, manifest: Manifest, directory: Path) -> int:
    """Commits after their shards, spec or card last: a pull that is killed leaves nothing that passes for whole."""
    groups: list[list[str]] = [[], [], []]
    for name in manifest.files:
        groups[2 if is_last(name) else 1 if name.startswith(f"{COMMITS}/") else 0].append(name)
    fetched = 0
    with Progress("Pulling", len(manifest.files), "files") as progress, ThreadPoolExecutor(WORKERS) as threads:
        for group in groups:
            for new in threads.map(lambda name: _fetch(remote, manifest, directory, name), group):
                fetched += new
                progress.advance()
    return fetched


def _fetch(remote: RemoteFiles, manifest: Manifest, directory: Path, name: str) -> bool:
    """Whether the file had to be fetched."""
    path, digest = directory / name, manifest.files[name]
    if path.is_file() and path.stat().st_size == digest.bytes and digest_of(path) == digest:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.pull")
    for _ in range(_FETCHES):
        try:
            remote.get(name, partial)
        except FileNotFoundError:
            raise CacheError(f"{remote.url}/{name}: is not there any more; push again") from None
        if digest_of(partial) == digest:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
            return True
    partial.unlink()
    raise CacheError(f"{remote.url}/{name}: arrives as other bytes than were pushed, {_FETCHES} times over; push again")
