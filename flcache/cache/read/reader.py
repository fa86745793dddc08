"""One committed shard, open for reading: payload bytes straight into the caller's memory, and their digests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flcache.cache.codecs.protocol import PayloadLayout
from flcache.cache.format.commit import Commit, repair_hint
from flcache.cache.format.index import Rows, index_size, parse_index
from flcache.cache.format.record import read_bytes
from flcache.cache.format.spec import CacheSpec
from flcache.cache.storage.local import shard_paths, storage_error, storage_errors
from flcache.errors import DamagedError


class ShardReader:
    """Reads payloads by row; safe to use from many threads. The file closes with the last reference.

    Raises DamagedError if the idx is not the one that was committed, or the tar not of the committed size.
    """

    def __init__(self, cache_dir: Path, commit: Commit, spec: CacheSpec) -> None:
        self._descriptor = -1
        self._layouts = spec.codec.payloads(spec.latent_shape)
        self._step_bytes = [layout.num_bytes // layout.shape[0] for layout in self._layouts]
        self._hint = repair_hint(cache_dir)
        paths = shard_paths(cache_dir, commit.split, commit.shard)
        self._path = paths.tar
        self.rows = read_rows(paths.idx, commit, spec, self._hint)
        """(clips,) the rows of the idx."""
        with storage_errors(paths.tar):
            self._descriptor = _open(paths.tar, self._hint)
            tar_bytes = os.fstat(self._descriptor).st_size
        if tar_bytes != commit.tar_bytes:
            raise DamagedError(f"{paths.tar}: {tar_bytes} bytes, commit says {commit.tar_bytes}; {self._hint}")
        self._offsets = self.rows["payloads"]["offset"].tolist()
        self.times = self.rows["times"]
        """(clips, T) seconds, of all steps."""
        self.valid_steps: list[int] = self.rows["valid_steps"].tolist()
        self.slots: list[int] = self.rows["slot"].tolist()
        """Of every clip, its place among the planned ones of the shard."""

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read_into(self, row: int, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill one buffer per payload of clip `row`, from step `start` on."""
        for payload, buffer in enumerate(buffers):
            offset = self._offsets[row][payload] + start * self._step_bytes[payload]
            remaining = buffer
            while remaining:
                try:
                    num_read = os.preadv(self._descriptor, [remaining], offset)
                except OSError as error:
                    raise storage_error(self._path, error) from error
                if not num_read:
                    raise DamagedError(f"{self._path}: ends in the middle of {self._slot(row)}; {self._hint}")
                remaining, offset = remaining[num_read:], offset + num_read

    def check(self, row: int, whole: Sequence[memoryview]) -> None:
        """Raises DamagedError unless `whole`, every payload of clip `row`, is what was written."""
        for payload, content in enumerate(whole):
            if xxhash.xxh3_64_intdigest(content) != int(self.rows["payloads"]["xxh3_64"][row, payload]):
                name = self._layouts[payload].name
                raise DamagedError(f"{self._path}: {name} of {self._slot(row)} are not what was written; {self._hint}")

    def read_checked(self, row: int, start: int, buffers: Sequence[memoryview], scratch: Sequence[memoryview]) -> None:
        """As `read_into` after reading the whole clip into `scratch`, one buffer per payload, and checking it.

        An empty `scratch` says that `buffers` are to hold the whole clip.
        """
        whole = scratch or buffers
        self.read_into(row, 0, whole)
        self.check(row, whole)
        for payload, content in enumerate(scratch):
            first = start * self._step_bytes[payload]
            buffers[payload][:] = content[first : first + buffers[payload].nbytes]

    def will_need(self, row: int, start: int, buffers: Sequence[memoryview]) -> None:
        """Tell the kernel that `read_into` comes with the same arguments, so that the disk starts now."""
        for payload, buffer in enumerate(buffers):
            offset = self._offsets[row][payload] + start * self._step_bytes[payload]
            os.posix_fadvise(self._descriptor, offset, buffer.nbytes, os.POSIX_FADV_WILLNEED)

    def _slot(self, row: int) -> str:
        return f"slot {self.slots[row]}"


def read_rows(path: Path, commit: Commit, spec: CacheSpec, hint: str) -> Rows:
    """The rows of a committed idx. Raises DamagedError if it is not the one that was committed."""
    layouts, num_steps = spec.codec.payloads(spec.latent_shape), spec.latent_shape[0]
    expected = index_size(commit.clips, num_steps, len(layouts))
    with storage_errors(path):
        idx_bytes = path.stat().st_size if path.is_file() else None
    if idx_bytes != expected:
        found = "missing" if idx_bytes is None else f"{idx_bytes} bytes"
        raise DamagedError(f"{path}: {found}, commit says {expected} bytes; {hint}")
    raw = read_bytes(path, expected)
    if xxhash.xxh3_64_hexdigest(raw) != commit.idx_xxh3_64:
        raise DamagedError(f"{path}: not the idx that was committed; {hint}")
    rows = parse_index(raw, path, num_steps=num_steps, num_payloads=len(layouts), repair=hint)
    _check_places(path, rows, layouts, commit.tar_bytes, hint)
    return rows


def payload_buffer(layout: PayloadLayout, num_steps: int, num_clips: int) -> NDArray[Any]:
    """Room for `num_steps` steps of one payload of `num_clips` clips, clip first."""
    return np.empty((num_clips, num_steps, *layout.shape[1:]), dtype=layout.dtype)


def _check_places(path: Path, rows: Rows, layouts: Sequence[PayloadLayout], tar_bytes: int, hint: str) -> None:
    """Every payload has the size of its layout and lies inside the tar, and slots ascend."""
    sizes, offsets = rows["payloads"]["bytes"], rows["payloads"]["offset"]
    expected = np.array([layout.num_bytes for layout in layouts], dtype=np.uint64)
    inside = (sizes <= tar_bytes) & (offsets <= tar_bytes - np.minimum(sizes, tar_bytes))
    if not (np.all(sizes == expected) and np.all(inside)):
        raise DamagedError(f"{path}: points outside of its tar; {hint}")
    if not np.all(rows["slot"][1:] > rows["slot"][:-1]):
        raise DamagedError(f"{path}: its slots do not ascend; {hint}")


def _open(path: Path, hint: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing, but committed; {hint}") from None
