"""Reading a cache: its clips by number, or some steps of them; statistics, failures and progress."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flcache.cache.format.commit import Commit, Failure, read_all_failures, read_commit, read_commits, repair_hint
from flcache.cache.format.plan_table import PlanTable
from flcache.cache.format.spec import read_spec
from flcache.cache.format.statistics import TRAINING_SPLIT, channel_statistics, merge_channels
from flcache.cache.read.reader import ShardReader, idx_digest
from flcache.cache.storage import Folder, Location, local_path, open_store
from flcache.errors import CacheError, DamagedError

if TYPE_CHECKING:
    from flcache.batch import ChannelStatistics

MAX_OPEN_SHARDS = 256


@dataclass(frozen=True)
class CachedClip:
    """One clip, or some consecutive steps of it."""

    clip_id: str
    latents: NDArray[Any]
    """(T, H, W, D) in the stored type for float16 and float32, float32 for all other codecs."""
    times: NDArray[np.float32]
    """(T,) seconds from the first frame of the clip."""
    valid: NDArray[np.bool_]
    """(T,) False where a step is made of padding only."""
    label: str | None
    video: str
    split: str
    seen_until: tuple[int, ...]
    """(T,) the last step that each step has seen; 0 is the first step here."""
    arrays: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """(T, A) by name, of the video's frames: see `LatentBatch.arrays`."""


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

    Opening costs one small read per shard; a shard is opened when its first clip is read. Shards that are committed
    later are not seen. Raises CacheError if there is no cache, or no such split.
    """

    def __init__(self, path: Location, split: str | None = None) -> None:
        self.store = open_store(path)
        self.spec = read_spec(self.store)
        self._plan = PlanTable(self.store)
        self._commits = read_commits(self.store, fingerprint=self.spec.fingerprint)
        self._check_split(split)
        self._check_commits()
        self.commits = tuple(commit for commit in self._commits if split in (None, commit.split))
        """The commits of the selected splits."""
        self._ends = list(accumulate(commit.clips for commit in self.commits))
        self._chosen: NDArray[np.int64] | None = None
        self._readers: dict[int, ShardReader] = {}

    @property
    def path(self) -> Folder:
        """The folder of the cache. Raises CacheError for one at a URL."""
        return local_path(self.store)

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

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The planned splits."""
        return tuple(sorted({split for split, _ in self._plan.first_rows}))

    def split(self, name: str) -> LatentCache:
        """The clips of one split."""
        return LatentCache(self.store, name)

    def clips(self, split: str) -> int:
        """Good clips of `split` that are committed."""
        self._check_split(split)
        return sum(commit.clips for commit in self._commits if commit.split == split)

    def select(self, *, labels: Collection[str] | None = None, ids: Collection[str] | None = None) -> LatentCache:
        """The clips here that have one of `labels` and one of `ids`, in the same order.

        Raises CacheError for a label or an id that no clip here has.
        """
        rows = self._plan_rows()
        kept = np.ones(len(rows), dtype=np.bool_)
        for column, wanted in (("label", labels), ("clip_id", ids)):
            if wanted is not None:
                kept &= self._among(column, rows, wanted)
        selected = copy.copy(self)  # shares plan, commits and open shards
        selected._chosen = np.flatnonzero(kept) if self._chosen is None else self._chosen[kept]
        return selected

    @property
    def ids(self) -> list[str]:
        """The ids of all clips; opens the idx of every shard with failures."""
        return list(self._plan.values("clip_id", self._plan_rows()))

    def clip_id(self, index: int) -> str:
        shard, row = self.locate(index)
        return self.ids_at([(shard, self.reader(shard).slots[row])])[0]

    def planned(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of the plan of these clips, as plain values."""
        return [self._plan.records(row, 1)[0] for row in self._plan_rows()[list(indices)].tolist()]

    def ids_at(self, slots: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """The ids of the clips at these (selected shard, slot) pairs."""
        rows = [self._planned(self.commits[shard])[0] + slot for shard, slot in slots]
        return tuple(self._plan.values("clip_id", rows))

    def __len__(self) -> int:
        if self._chosen is not None:
            return len(self._chosen)
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> CachedClip:
        return self.steps(index, 0, self.latent_shape[0])

    def steps(self, index: int, start: int, stop: int) -> CachedClip:
        """Steps `start` to `stop` of clip number `index`; only their bytes are read.

        Raises DamagedError if they are not what was written. Only a whole clip has a digest to check.
        """
        self.check_steps(start, stop)
        shard, row = self.locate(index)
        reader = self.reader(shard)
        payloads = [np.empty((stop - start, *layout.shape[1:]), layout.dtype) for layout in self.spec.payloads]
        buffers = [memoryview(payload.reshape(-1).view(np.uint8).data) for payload in payloads]
        try:
            if stop - start == self.latent_shape[0]:
                reader.read_checked(row, start, buffers, ())
            else:
                reader.read_into(row, start, buffers)
        except DamagedError as error:
            raise self.damaged_clip(index, error) from error
        return self.clip_at(shard, row, payloads, start)

    def clip_at(self, shard: int, row: int, payloads: Sequence[NDArray[Any]], start: int = 0) -> CachedClip:
        """The clip in this row of the selected shard, from its `payloads` of the steps from `start` on."""
        reader, commit, stop = self.reader(shard), self.commits[shard], start + len(payloads[0])
        plan_row = self._planned(commit)[0] + reader.slots[row]
        return CachedClip(
            clip_id=str(self._plan.value("clip_id", plan_row)),
            latents=self.spec.decode(payloads),
            times=reader.times[row, start:stop].copy(),
            valid=np.arange(start, stop) < reader.valid_steps[row],
            label=self._plan.value("label", plan_row),
            video=str(self._plan.value("video", plan_row)),
            split=commit.split,
            seen_until=tuple(seen - start for seen in self.seen_until[start:stop]),
            arrays=dict(zip(self.spec.arrays, payloads[len(payloads) - len(self.spec.arrays) :], strict=True)),
        )

    def damaged_clip(self, index: int, error: DamagedError) -> DamagedError:
        """`error` with the id of clip number `index` before it."""
        return DamagedError(f"clip {self.clip_id(index)}: {error}")

    def check_steps(self, start: int, stop: int) -> None:
        """Raises CacheError unless steps `start` to `stop` are steps of these clips."""
        if not 0 <= start < stop <= self.latent_shape[0]:
            raise CacheError(f"steps {start} to {stop}: these clips have {self.latent_shape[0]} steps")

    def locate(self, index: int) -> tuple[int, int]:
        """The number of the selected shard that holds clip number `index`, and its row there."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        if self._chosen is not None:
            position = int(self._chosen[position])
        shard = bisect_right(self._ends, position)
        return shard, position - self._ends[shard] + self.commits[shard].clips

    def reader(self, shard: int) -> ShardReader:
        """The selected shard number `shard`, open; beyond MAX_OPEN_SHARDS the one that was opened first is closed.

        Safe from many threads. Lock-free, because a finalizer may run during any call and would deadlock on a lock:
        every step is atomic, and two threads that open the same shard at once do no harm.
        """
        reader = self._readers.get(shard)
        if reader is None:
            reader = self._readers[shard] = self._open(self.commits[shard])
            if len(self._readers) > MAX_OPEN_SHARDS:
                oldest, *_ = self._readers  # one atomic step: other threads change the dict during iteration
                self._readers.pop(oldest, None)
        return reader

    def fetch_soon(self, shards: Sequence[int]) -> None:
        """Begin to fetch these selected shards, where the store has to, the small files first; returns at once."""
        commits = [self.commits[shard] for shard in shards]
        files = [(commit.files.idx, idx_digest(commit, self.spec)) for commit in commits]
        for name, digest in [*files, *((commit.files.tar, commit.tar_digest) for commit in commits)]:
            self.store.open(name, digest=digest).will_need(0, digest.bytes)

    def statistics(self) -> ChannelStatistics:
        """Mean and deviation per channel over the valid steps of the training split, as far as it is committed.

        Those of the codec where it has some, as int8 does: its stored values are standardised with them already.
        """
        return self.spec.codec.statistics() or channel_statistics(self.spec.channels or self._merged_channels)

    def failures(self) -> list[Failure]:
        """The failed clips of the selected splits, as far as they are committed."""
        return read_all_failures(self.store, self.commits)

    def progress(self) -> dict[str, SplitProgress]:
        """How much of each split is done."""
        found = {}
        for split in self.splits:
            planned = [count for (name, _), (_, count) in self._plan.first_rows.items() if name == split]
            commits = [commit for commit in self._commits if commit.split == split]
            found[split] = SplitProgress(
                planned_shards=len(planned),
                committed_shards=len(commits),
                planned_clips=sum(planned),
                clips=sum(commit.clips for commit in commits),
                failed=sum(commit.failed for commit in commits),
            )
        return found

    def _open(self, commit: Commit) -> ShardReader:
        try:
            reader = ShardReader(self.store, commit, self.spec)
        except DamagedError:
            if read_commit(self.store, commit.split, commit.shard) != commit:
                raise CacheError(
                    f"{self.store}: {commit.name} has other clips since the cache was opened; open it again"
                ) from None
            raise
        _, count = self._planned(commit)
        if reader.slots and reader.slots[-1] >= count:  # they ascend
            slot = reader.slots[-1]
            raise DamagedError(f"{self.store}: slot {slot} of {commit.name} is not planned; {repair_hint(self.store)}")
        return reader

    @cached_property
    def _merged_channels(self) -> dict[str, Any]:
        training = [commit for commit in self._commits if commit.split == TRAINING_SPLIT]
        return merge_channels(self.store, self.spec, training)

    def _plan_rows(self) -> NDArray[np.int64]:
        """(n,) the row of the plan of every clip here; opens only the shards with failures."""
        rows = [np.zeros(0, dtype=np.int64)]
        for shard, commit in enumerate(self.commits):
            first, count = self._planned(commit)
            slots = np.arange(count) if commit.clips == count else self.reader(shard).rows["slot"].astype(np.int64)
            rows.append(first + slots)
        return np.concatenate(rows) if self._chosen is None else np.concatenate(rows)[self._chosen]

    def _among(self, column: str, rows: NDArray[np.int64], wanted: Collection[str]) -> NDArray[np.bool_]:
        """Which of the plan's `rows` have one of the `wanted` values."""
        values, wanted_values = self._plan.column(column).take(pa.array(rows)), pa.array(sorted(wanted), pa.string())
        absent = wanted_values.filter(pc.invert(pc.is_in(wanted_values, values)))
        if len(absent):
            raise CacheError(f"{self.store}: {len(absent)} of the wanted {column}s are not here, such as {absent[0]}")
        found: NDArray[np.bool_] = pc.is_in(values, wanted_values).to_numpy(zero_copy_only=False)
        return found

    def _planned(self, commit: Commit) -> tuple[int, int]:
        """Where in the plan the shard starts, and how many clips it has."""
        return self._plan.first_rows.get((commit.split, commit.shard), (0, 0))

    def _check_commits(self) -> None:
        """Memory is sized by commits. Raises DamagedError unless they fit the plan, and their clips fit in the tars."""
        clip_bytes = self.spec.codec.clip_bytes(self.latent_shape)
        for commit in self._commits:
            _, count = self._planned(commit)
            if commit.clips + commit.failed > count or commit.clips * clip_bytes > commit.tar_bytes:
                raise DamagedError(
                    f"{self.store}: {commit.name}: {commit.clips} clips of {clip_bytes} bytes and {commit.failed} "
                    f"failures in {commit.tar_bytes} bytes, {count} clips are planned; {repair_hint(self.store)}"
                )

    def _check_split(self, split: str | None) -> None:
        if split is not None and split not in self.splits:
            raise CacheError(f"{self.store}: no split {split!r}; there are {', '.join(self.splits) or 'none'}")
