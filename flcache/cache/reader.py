"""One committed shard, open for reading: payload bytes straight into the caller's memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.cache.codec import PayloadLayout
from flcache.cache.commit import Commit, repair_hint
from flcache.cache.index import Rows, index_size, read_index
from flcache.cache.spec import CacheSpec
from flcache.cache.storage import shard_paths, storage_errors
from flcache.errors import DamagedError


class ShardReader:
    """Reads payloads by row; safe to use from many threads. The file closes with the last reference.

    Raises DamagedError if tar or idx are not what the commit says, as far as sizes and offsets tell.
    """

    def __init__(self, cache_dir: Path, commit: Commit, spec: CacheSpec) -> None:
        self._descriptor = -1
        self._layouts = spec.codec.payloads(spec.latent_shape)
        self._hint = repair_hint(cache_dir)
        paths = shard_paths(cache_dir, commit.split, commit.shard)
        self._path = paths.tar
        self.rows = self._read_rows(paths.idx, commit, spec.latent_shape[0])
        """(clips,) the rows of the idx."""
        self._check_places(commit.tar_bytes)
        with storage_errors(paths.tar):
            self._descriptor = _open(paths.tar, self._hint)
            tar_bytes = os.fstat(self._descriptor).st_size
        if tar_bytes != commit.tar_bytes:
            raise DamagedError(f"{paths.tar}: {tar_bytes} bytes, commit says {commit.tar_bytes}; {self._hint}")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read_into(self, row: int, payload: int, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with payload number `payload` of clip `row`, from step `start` on."""
        layout = self._layouts[payload]
        step_bytes = layout.num_bytes // layout.shape[0]
        offset = int(self.rows["payloads"]["offset"][row, payload]) + start * step_bytes
        remaining = buffer
        while remaining:
            with storage_errors(self._path):
                num_read = os.preadv(self._descriptor, [remaining], offset)
            if not num_read:
                raise DamagedError(f"{self._path}: ends in the middle of slot {self.rows['slot'][row]}; {self._hint}")
            remaining, offset = remaining[num_read:], offset + num_read

    def _read_rows(self, path: Path, commit: Commit, num_steps: int) -> Rows:
        with storage_errors(path):
            idx_bytes = path.stat().st_size if path.is_file() else None
        expected = index_size(commit.clips, num_steps, len(self._layouts))
        if idx_bytes != expected:
            found = "missing" if idx_bytes is None else f"{idx_bytes} bytes"
            raise DamagedError(f"{path}: {found}, commit says {expected} bytes; {self._hint}")
        return read_index(path, num_steps=num_steps, num_payloads=len(self._layouts), repair=self._hint)

    def _check_places(self, tar_bytes: int) -> None:
        """Every payload has the size of its layout and lies inside the tar."""
        sizes, offsets = self.rows["payloads"]["bytes"], self.rows["payloads"]["offset"]
        expected = np.array([layout.num_bytes for layout in self._layouts], dtype=np.uint64)
        inside = (sizes <= tar_bytes) & (offsets <= tar_bytes - np.minimum(sizes, tar_bytes))
        if not (np.all(sizes == expected) and np.all(inside)):
            raise DamagedError(f"{self._path.with_suffix('.idx')}: points outside of its tar; {self._hint}")


def payload_buffer(layout: PayloadLayout, num_steps: int, num_clips: int) -> NDArray[Any]:
    """Room for `num_steps` steps of one payload of `num_clips` clips, clip first."""
    return np.empty((num_clips, num_steps, *layout.shape[1:]), dtype=layout.dtype)


def _open(path: Path, hint: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing, but committed; {hint}") from None
