"""Reading a cache: its clips by number, windows of their steps, statistics, failures and progress."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flcache.cache.commit import Commit, Failure, read_commits, read_failures, repair_hint
from flcache.cache.plan import PlanTable
from flcache.cache.reader import ShardReader, payload_buffer
from flcache.cache.spec import read_spec
from flcache.cache.statistics import TRAINING_SPLIT, channel_statistics, merge_channels
from flcache.errors import CacheError, DamagedError

if TYPE_CHECKING:
    from flcache.batch import ChannelStatistics

MAX_OPEN_SHARDS = 256


@dataclass(frozen=True)
class CachedClip:
    """One clip, or a window of its steps."""

    clip_id: str
    latents: NDArray[Any]
    """(T, H, W, D) in the smallest float type that holds the stored values exactly: float16 or float32."""
    times: NDArray[np.float32]
    """(T,) seconds from the first frame of the clip."""
    valid: NDArray[np.bool_]
    """(T,) False where a step is made of padding only."""
    label: str | None
    video: str
    split: str
    seen_until: tuple[int, ...]
    """(T,) the last step that each step has seen, counted from the first step here."""


@dataclass(frozen=True)
class SplitProgress:
    planned_shards: int
    committed_shards: int
    planned_clips: int
    clips: int
    """Good clips in committed shards."""
    failed: int


class LatentCache:
    """The committed clips of the cache at `path`, of one split or of all, in plan order; a sequence of CachedClip.

    Opening costs one small read per shard; a shard is opened when its first clip is asked for. What is committed
    later is not seen. Raises CacheError if there is no cache, or no such split.
    """

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        self.path = Path(path)
        self.spec = read_spec(self.path)
        self._plan = PlanTable(self.path)
        self._commits = read_commits(self.path, fingerprint=self.spec.fingerprint)
        self._check_split(split)
        self._selected = [commit for commit in self._commits if split in (None, commit.split)]
        self._ends = np.array(list(accumulate(commit.clips for commit in self._selected)), dtype=np.int64)
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._lock = Lock()

    @property
    def fingerprint(self) -> str:
        return self.spec.fingerprint

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, D)"""
        return self.spec.latent_shape

    @property
    def seen_until(self) -> tuple[int, ...]:
        """(T,) the last step that each step has seen."""
        return self.spec.seen_until

    @property
    def commits(self) -> tuple[Commit, ...]:
        """The commits of the selected splits."""
        return tuple(self._selected)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The planned splits."""
        return tuple(sorted({split for split, _ in self._plan.first_rows}))

    def split(self, name: str) -> LatentCache:
        """The clips of one split."""
        return LatentCache(self.path, name)

    def clips(self, split: str) -> int:
        """Good clips of `split` that are committed."""
        self._check_split(split)
        return sum(commit.clips for commit in self._commits if commit.split == split)

    @property
    def ids(self) -> list[str]:
        """The ids of all clips; opens every shard's idx."""
        return [self.clip_id(index) for index in range(len(self))]

    def clip_id(self, index: int) -> str:
        """The id of clip number `index`."""
        return str(self._plan.value("clip_id", self._plan_row(*self.locate(index))))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> CachedClip:
        return self.window(index, 0, self.latent_shape[0])

    def window(self, index: int, start: int, stop: int) -> CachedClip:
        """Steps `start` to `stop` of clip number `index`; only their bytes are read."""
        self.check_window(start, stop)
        shard, row = self.locate(index)
        reader, plan_row = self.reader(shard), self._plan_row(shard, row)
        payloads = []
        for number, layout in enumerate(self.spec.codec.payloads(self.latent_shape)):
            payload = payload_buffer(layout, stop - start, 1)
            reader.read_into(row, number, start, payload.data.cast("B"))
            payloads.append(payload[0])
        return CachedClip(
            clip_id=str(self._plan.value("clip_id", plan_row)),
            latents=self.spec.codec.restore(payloads),
            times=reader.rows["times"][row, start:stop].copy(),
            valid=np.arange(start, stop) < reader.rows["valid_steps"][row],
            label=self._plan.value("label", plan_row),
            video=str(self._plan.value("video", plan_row)),
            split=self._selected[shard].split,
            seen_until=tuple(seen - start for seen in self.seen_until[start:stop]),
        )

    def check_window(self, start: int, stop: int) -> None:
        """Raises CacheError unless steps `start` to `stop` are steps of these clips."""
        if not 0 <= start < stop <= self.latent_shape[0]:
            raise CacheError(f"steps {start} to {stop}: these clips have {self.latent_shape[0]} steps")

    def locate(self, index: int) -> tuple[int, int]:
        """Which of the selected shards, and which row of it, clip number `index` is."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, position, side="right"))
        return shard, position - int(self._ends[shard]) + self._selected[shard].clips

    def reader(self, shard: int) -> ShardReader:
        """The selected shard number `shard`, open; the least used one is closed when there are too many."""
        with self._lock:
            reader = self._readers.pop(shard, None)
            if reader is None:
                reader = ShardReader(self.path, self._selected[shard], self.spec)
            self._readers[shard] = reader
            if len(self._readers) > MAX_OPEN_SHARDS:
                self._readers.popitem(last=False)
            return reader

    def statistics(self) -> ChannelStatistics:
        """Mean and deviation per channel over the valid steps of the training split, as far as it is committed."""
        return channel_statistics(self.spec.channels or self._merged_channels)

    def failures(self) -> list[Failure]:
        """The clips of the selected splits that are planned and committed as failed."""
        return [failure for commit in self._selected for failure in read_failures(self.path, commit)]

    def progress(self) -> dict[str, SplitProgress]:
        """How much of each split is done."""
        return {split: self._split_progress(split) for split in self.splits}

    @cached_property
    def _merged_channels(self) -> dict[str, Any]:
        training = [commit for commit in self._commits if commit.split == TRAINING_SPLIT]
        return merge_channels(self.path, self.spec, training)

    def _split_progress(self, split: str) -> SplitProgress:
        planned = [count for (name, _), (_, count) in self._plan.first_rows.items() if name == split]
        commits = [commit for commit in self._commits if commit.split == split]
        return SplitProgress(
            planned_shards=len(planned),
            committed_shards=len(commits),
            planned_clips=sum(planned),
            clips=sum(commit.clips for commit in commits),
            failed=sum(commit.failed for commit in commits),
        )

    def _plan_row(self, shard: int, row: int) -> int:
        commit = self._selected[shard]
        first, count = self._plan.first_rows.get((commit.split, commit.shard), (0, 0))
        slot = int(self.reader(shard).rows["slot"][row])
        if slot >= count:
            raise DamagedError(f"{self.path}: slot {slot} of {commit.name} is not planned; {repair_hint(self.path)}")
        return first + slot

    def _check_split(self, split: str | None) -> None:
        if split is not None and split not in self.splits:
            raise CacheError(f"{self.path}: no split {split!r}; there are {', '.join(self.splits) or 'none'}")
