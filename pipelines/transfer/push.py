"""flcache push DIR URL: a cache or an exported model to a store; run again, it sends what is missing there."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from rich.filesize import decimal

from flcache.errors import CacheError
from flcache.remote import Digest, RemoteFiles, digest_of

from ..setup.progress import Progress
from .contents import Contents, contents_of
from .manifest import MANIFEST, Manifest, manifest_at

WORKERS = 8
_KEPT_EVERY_S = 60.0


def push(directory: Path, url: str, *, licence: str, read_back: bool = True) -> None:
    """Send the files of `directory` to `url`, each read back there unless `read_back` is off, and its README.

    What arrived in an earlier push is not sent again. Raises CacheError if `url` holds something else, if a file is not
    what its commit says, or if the store fails for good.
    """
    contents, remote = contents_of(directory, licence), RemoteFiles(url)
    there = manifest_at(remote) or Manifest(contents.kind, contents.identity)
    if (there.kind, there.identity) != (contents.kind, contents.identity):
        raise CacheError(f"{url}: holds another {there.kind} ({there.identity}); push to a folder of its own")
    sent = _Push(directory, contents, remote, there.files, read_back)
    manifest = sent.run()
    remote.write("README.md", contents.card.encode())
    manifest.complete = True
    remote.write(MANIFEST, manifest.text().encode())
    size = decimal(sum(digest.bytes for digest in manifest.files.values()))
    print(f"{remote.url}: {len(manifest.files)} files, {size}; {sent.count} sent, the others were there")


class _Push:
    def __init__(
        self, directory: Path, contents: Contents, remote: RemoteFiles, there: dict[str, Digest], read_back: bool
    ) -> None:
        self._directory, self._contents, self._remote = directory, contents, remote
        self._there, self._read_back = there, read_back
        self.count = 0

    def run(self) -> Manifest:
        """Send what is not there. The manifest is written now and then: a push that is killed goes on from it."""
        names = list(chain.from_iterable(self._contents.files))
        there = {name: self._there[name] for name in names if name in self._there}
        manifest = Manifest(self._contents.kind, self._contents.identity, there)
        kept_s = time.monotonic()
        with Progress("Pushing", len(names), "files") as progress, ThreadPoolExecutor(WORKERS) as threads:
            for group in self._contents.files:
                for name, digest in zip(group, threads.map(self._send, group), strict=True):
                    manifest.files[name] = digest
                    progress.advance()
                    if time.monotonic() - kept_s > _KEPT_EVERY_S:
                        self._remote.write(MANIFEST, manifest.text().encode())
                        kept_s = time.monotonic()
        return manifest

    def _send(self, name: str) -> Digest:
        path = self._directory / name
        digest = digest_of(path)
        if self._contents.known.get(name, digest.xxh3_64) != digest.xxh3_64:
            raise CacheError(f"{path}: not what its commit says; run flcache repair, then push")
        if self._there.get(name) == digest:
            return digest
        self._remote.put_checked(path, name, digest, read_back=self._read_back)
        self.count += 1
        return digest
