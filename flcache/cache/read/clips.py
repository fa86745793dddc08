"""The clips that a loader reads: those of one cache, or of several caches as one sequence."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flcache.cache.read.cache import LatentCache
from flcache.cache.read.reader import ShardReader
from flcache.cache.read.ring import BatchBuffer
from flcache.errors import CacheError, DamagedError

ShardKey = tuple[int, int]
"""The number of a cache, and of one of its shards."""
VERIFY = ("always", "first_epoch", "off")


@dataclass(frozen=True)
class StoredBatch:
    """A batch without its latents."""

    owners: tuple[int, ...]
    """(B,) the number of each clip's cache."""
    times: NDArray[np.float32]
    """(B, steps) seconds."""
    valid: NDArray[np.bool_]
    """(B, steps)"""
    ids: tuple[str, ...]
    arrays: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """(B, steps, A) by name."""


class _Place(NamedTuple):
    cache: LatentCache
    clip: int
    """Its number in the cache."""
    reader: ShardReader
    shard: int
    row: int


class ClipReader:
    """Reads batches of clips, by their numbers over all `caches`, into batch buffers; safe for many threads.

    `verify` is `always`, `first_epoch` (a clip when it is first read) or `off`. Digests are of whole clips: where
    `steps` (start, stop) are fewer, a clip is read whole to check it. With `read_ahead` the kernel is told of all clips
    of a batch before the first is read.
    """

    def __init__(self, caches: Sequence[LatentCache], steps: tuple[int, int], *, verify: str, read_ahead: bool) -> None:
        if verify not in VERIFY:
            raise CacheError(f"verify={verify!r}; it is one of {', '.join(VERIFY)}")
        self._caches, self._verify, self._read_ahead = tuple(caches), verify, read_ahead
        self._start, self._stop = steps
        self._ends = list(accumulate(map(len, caches)))
        self._checked = np.zeros(self._ends[-1], dtype=np.bool_)

    def check_sizes(self) -> None:
        """Raises DamagedError unless the first shard of each cache holds clips of the size in its spec. To be called
        before memory of that size is allocated."""
        for cache in self._caches:
            cache.reader(cache.locate(0)[0])

    @property
    def ahead_bytes(self) -> int:
        """How much may be asked for before it is read; 0 where all caches are in folders."""
        return max(cache.store.ahead_bytes for cache in self._caches)

    def shards_of(self, numbers: NDArray[np.int64]) -> list[ShardKey]:
        """The shards of these clips that may have to be fetched, each once, in the order of the clips."""
        found = dict.fromkeys(self._located(number) for number in numbers.tolist())
        return [(owner, shard) for owner, shard in found if self._caches[owner].store.ahead_bytes]

    def shard_bytes(self, shard: ShardKey) -> int:
        return self._caches[shard[0]].commits[shard[1]].tar_bytes

    def fetch_soon(self, shards: Iterable[ShardKey]) -> None:
        for owner, found in groupby(shards, key=itemgetter(0)):
            self._caches[owner].fetch_soon([shard for _, shard in found])

    def read(
        self, numbers: NDArray[np.int64], buffer: BatchBuffer, take: Callable[[BatchBuffer, int, int], None]
    ) -> StoredBatch:
        """Read the clips of these `numbers` (B,) into `buffer`, calling `take(buffer, clip, owner)` after each.

        Raises DamagedError naming shard, clip and remedy.
        """
        owners = [bisect_right(self._ends, number) for number in numbers.tolist()]
        places = [self._place(owner, number) for owner, number in zip(owners, numbers.tolist(), strict=True)]
        arrays = self._empty_arrays(len(places))
        views = [
            (*payloads, *(_bytes_of(array[clip]) for array in arrays.values()))
            for clip, payloads in enumerate(buffer.views[: len(places)])
        ]
        scratch = buffer.scratch and (*buffer.scratch, *map(_bytes_of, self._empty_clip()))
        if self._read_ahead:
            for place, payloads in zip(places, views, strict=True):
                place.reader.will_need(place.row, self._start, payloads)
        for clip, (number, place, payloads) in enumerate(zip(numbers.tolist(), places, views, strict=True)):
            self._read_clip(number, place, payloads, scratch)
            take(buffer, clip, owners[clip])
        valid_steps = np.array([[place.reader.valid_steps[place.row]] for place in places])  # (B, 1)
        return StoredBatch(
            owners=tuple(owners),
            times=np.array([place.reader.times[place.row, self._start : self._stop] for place in places]),
            valid=np.arange(self._start, self._stop) < valid_steps,
            ids=self._ids(places),
            arrays=arrays,
        )

    def _empty_arrays(self, clips: int) -> dict[str, NDArray[np.float32]]:
        """(clips, steps, A) by name: small, and so new for every batch."""
        steps = self._stop - self._start
        return {name: np.empty((clips, steps, A), np.float32) for name, (_, A) in self._caches[0].spec.arrays.items()}

    def _empty_clip(self) -> list[NDArray[np.float32]]:
        """(T, A) each, of a whole clip."""
        return [np.empty(shape, np.float32) for shape in self._caches[0].spec.arrays.values()]

    def _ids(self, places: Sequence[_Place]) -> tuple[str, ...]:
        if len(self._caches) == 1:  # one look-up for the whole batch
            return self._caches[0].ids_at([(place.shard, place.reader.slots[place.row]) for place in places])
        return tuple(place.cache.clip_id(place.clip) for place in places)

    def _located(self, number: int) -> ShardKey:
        owner = bisect_right(self._ends, number)
        cache = self._caches[owner]
        return owner, cache.locate(number - self._ends[owner] + len(cache))[0]

    def _place(self, owner: int, number: int) -> _Place:
        cache = self._caches[owner]
        index = number - self._ends[owner] + len(cache)
        shard, row = cache.locate(index)
        return _Place(cache, index, cache.reader(shard), shard, row)

    def _read_clip(
        self, number: int, place: _Place, buffers: Sequence[memoryview], scratch: Sequence[memoryview]
    ) -> None:
        try:
            if self._verify == "off" or (self._verify == "first_epoch" and self._checked[number]):
                place.reader.read_into(place.row, self._start, buffers)
            else:
                place.reader.read_checked(place.row, self._start, buffers, scratch)
                self._checked[number] = True
        except DamagedError as error:
            raise place.cache.damaged_clip(place.clip, error) from error


def _bytes_of(array: NDArray[np.float32]) -> memoryview:
    return array.reshape(-1).data.cast("B")
