"""One committed shard, open for reading: payload bytes straight into the caller's memory, and their digests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flcache.cache.codecs.protocol import PayloadLayout
from flcache.cache.format.commit import Commit, check_size, damaged
from flcache.cache.format.index import Rows, index_size, parse_index
from flcache.cache.format.spec import CacheSpec
from flcache.cache.storage import Store
from flcache.errors import DamagedError
from flcache.remote import Digest


class ShardReader:
    """Reads payloads by row; safe to use from many threads. The file closes with the last reference.

    Raises DamagedError if the idx is not the one that was committed, or the tar not of the committed size.
    """

    def __init__(self, store: Store, commit: Commit, spec: CacheSpec) -> None:
        self._layouts = spec.payloads
        self._step_bytes = [layout.num_bytes // layout.shape[0] for layout in self._layouts]
        tar = commit.files.tar
        self._store, self._tar = store, tar
        self.rows = read_rows(store, commit, spec)
        """(clips,) the rows of the idx."""
        check_size(store, tar, commit.tar_digest)
        self._file = store.open(tar, digest=commit.tar_digest)
        self._offsets = self.rows["payloads"]["offset"].tolist()
        self.times = self.rows["times"]
        """(clips, T) seconds, of all steps."""
        self.valid_steps: list[int] = self.rows["valid_steps"].tolist()
        self.slots: list[int] = self.rows["slot"].tolist()
        """The slot of every clip."""

    def read_into(self, row: int, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill one buffer per payload of clip `row`, from step `start` on."""
        for payload, buffer in enumerate(buffers):
            offset = self._offsets[row][payload] + start * self._step_bytes[payload]
            if self._file.read_into(offset, buffer) < len(buffer):
                raise damaged(self._store, f"{self._tar}: ends in the middle of slot {self.slots[row]}")

    def read_checked(self, row: int, start: int, buffers: Sequence[memoryview], scratch: Sequence[memoryview]) -> None:
        """As `read_into`, after reading the whole clip into `scratch`, one buffer per payload, and checking it.

        With an empty `scratch`, `buffers` must have room for the whole clip.
        """
        whole = scratch or buffers
        self.read_into(row, 0, whole)
        for payload, content in enumerate(whole):
            self._check(row, payload, content)
        for payload, content in enumerate(scratch):
            first = start * self._step_bytes[payload]
            buffers[payload][:] = content[first : first + buffers[payload].nbytes]

    def array(self, row: int, payload: int) -> NDArray[Any]:
        """One payload of clip `row`, checked."""
        layout = self._layouts[payload]
        values = np.empty(layout.shape, layout.dtype)
        content = values.reshape(-1).data.cast("B")
        self._file.read_into(self._offsets[row][payload], content)
        self._check(row, payload, content)
        return values

    def will_need(self, row: int, start: int, buffers: Sequence[memoryview]) -> None:
        """Start to fetch what `read_into` with the same arguments will read."""
        for payload, buffer in enumerate(buffers):
            offset = self._offsets[row][payload] + start * self._step_bytes[payload]
            self._file.will_need(offset, len(buffer))

    def _check(self, row: int, payload: int, content: memoryview) -> None:
        if xxhash.xxh3_64_intdigest(content) != int(self.rows["payloads"]["xxh3_64"][row, payload]):
            what = f"{self._layouts[payload].name} of slot {self.slots[row]}"
            raise damaged(self._store, f"{self._tar}: {what} are not what was written")


def read_rows(store: Store, commit: Commit, spec: CacheSpec) -> Rows:
    """The rows of a committed idx. Raises DamagedError if it is not the one that was committed."""
    idx = commit.files.idx
    layouts, num_steps = spec.payloads, spec.latent_shape[0]
    digest = idx_digest(commit, spec)
    check_size(store, idx, digest)
    raw = store.read(idx, digest.bytes, digest=digest)
    try:
        if xxhash.xxh3_64_hexdigest(raw) != commit.idx_xxh3_64:
            raise DamagedError("not the idx that was committed")
        rows = parse_index(raw, num_steps=num_steps, num_payloads=len(layouts))
        _check_places(rows, layouts, commit.tar_bytes)
    except DamagedError as error:
        raise damaged(store, f"{idx}: {error}") from None
    return rows


def idx_digest(commit: Commit, spec: CacheSpec) -> Digest:
    """What the idx of a committed shard must be."""
    num_payloads = len(spec.payloads)
    return Digest(index_size(commit.clips, spec.latent_shape[0], num_payloads), commit.idx_xxh3_64)


def _check_places(rows: Rows, layouts: Sequence[PayloadLayout], tar_bytes: int) -> None:
    """Raises DamagedError unless every payload is as large as its layout and inside the tar, and slots ascend."""
    sizes, offsets = rows["payloads"]["bytes"], rows["payloads"]["offset"]
    expected = np.array([layout.num_bytes for layout in layouts], dtype=np.uint64)
    inside = (sizes <= tar_bytes) & (offsets <= tar_bytes - np.minimum(sizes, tar_bytes))
    if not (np.all(sizes == expected) and np.all(inside)):
        raise DamagedError("points outside of its tar")
    if not np.all(rows["slot"][1:] > rows["slot"][:-1]):
        raise DamagedError("its slots do not ascend")
