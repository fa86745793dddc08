"""Which shards the coming batches need, so that a store that has to fetch them can begin in time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flcache.cache.read.clips import ClipReader, ShardKey


class ShardsAhead:
    """Asks for the shards of coming batches, in their order, as far as `ClipReader.ahead_bytes` allows.

    All that is asked for and not yet used is asked for again with every new shard: a disk cache drops what was used
    longest ago, and what comes next must not be that.
    """

    def __init__(self, clips: ClipReader, batches: Iterator[NDArray[np.int64]]) -> None:
        self._clips, self._batches = clips, batches
        self._coming: deque[list[ShardKey]] = deque()
        self._needed: Counter[ShardKey] = Counter()
        """How many coming batches need each shard, in the order in which they were first needed."""
        self._bytes = 0
        self._next = self._look()
        self._extend()

    def advance(self) -> None:
        """A batch has been used."""
        for shard in self._coming.popleft() if self._coming else ():
            self._needed[shard] -= 1
            if not self._needed[shard]:
                del self._needed[shard]
                self._bytes -= self._clips.shard_bytes(shard)
        self._extend()

    def _look(self) -> list[ShardKey] | None:
        """The shards of the next batch; None after the last."""
        numbers = next(self._batches, None)
        return None if numbers is None else self._clips.shards_of(numbers)

    def _extend(self) -> None:
        """Look further, while there is room; the batch that comes next is looked at in any case."""
        grown = False
        while self._next is not None:
            fresh = [shard for shard in self._next if shard not in self._needed]
            num_bytes = sum(map(self._clips.shard_bytes, fresh))
            if self._coming and self._bytes + num_bytes > self._clips.ahead_bytes:
                break
            self._coming.append(self._next)
            self._needed.update(self._next)
            self._bytes += num_bytes
            grown |= bool(fresh)
            self._next = self._look()
        if grown:
            self._clips.fetch_soon(self._needed)
