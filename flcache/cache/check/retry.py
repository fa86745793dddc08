"""Clips that failed are stored in their committed shard after all; its other clips keep their bytes.

The new shard is written beside the old one, under names that end in `.retried`, its commit last. Then the old commit is
removed, the files take their places, and the new commit comes last: whoever opens the shard finds the old one, for a
moment none, then the new one. A kill before the new commit is written leaves the old shard; after that, `settle` ends
what was begun.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flcache.cache.check.walk import json_content
from flcache.cache.format.commit import Commit, Failure, damaged, read_commit, read_failures
from flcache.cache.format.names import COMMITS, RETRIED, retried_files, shard_files, shard_of
from flcache.cache.format.plan_table import PlanTable
from flcache.cache.format.spec import CacheSpec
from flcache.cache.format.tar import BLOCK_BYTES, padded
from flcache.cache.read.reader import read_rows
from flcache.cache.storage import Location, Store, StoredFile, open_store
from flcache.cache.write.shard import EncodedClip, ShardWriter
from flcache.errors import CacheError

_LONGEST_METADATA = 2**24


class RetryWriter:
    """Takes what `ShardWriter` takes, for clips that are failures of a committed shard; in slot order.

    A clip that is stored by now, by another run, stays as it is. Without `commit` the old shard stays.
    """

    committed = None

    def __init__(
        self,
        location: Location,
        split: str,
        shard: int,
        spec: CacheSpec,
        *,
        min_cosine: float | None = None,
        wait: bool = True,
    ) -> None:
        self._store, self._split, self._shard, self._spec = open_store(location), split, shard, spec
        self._writer = ShardWriter(self._store, split, shard, spec, min_cosine=min_cosine, wait=wait, retried=True)

    def __enter__(self) -> RetryWriter:
        self._writer.__enter__()
        try:
            _settle_locked(self._store, self._split, self._shard)
            self._old = read_commit(self._store, self._split, self._shard)
            self._stored = dict(_stored_clips(self._store, self._old, self._spec))
            self._failures = {failure.slot: failure for failure in read_failures(self._store, self._old)}
            self._slots = iter(sorted([*self._stored, *self._failures]))
            self._next = next(self._slots, None)
            self._writer.add_fidelity(self._old.fidelity, self._old.keep_fidelity)
        except BaseException:
            self._writer.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.__exit__()

    def add(self, clip: EncodedClip) -> None:
        if self._reach(clip.slot):
            self._writer.add(clip)

    def fail(self, failure: Failure) -> None:
        if self._reach(failure.slot):
            self._writer.fail(failure)

    def commit(self) -> Commit:
        """Put the new shard in place of the old one, if it is another."""
        self._reach(None)
        fresh = self._writer.commit()
        digests = [(commit.tar_xxh3_64, commit.idx_xxh3_64, commit.failures_xxh3_64) for commit in (self._old, fresh)]
        if digests[0] == digests[1]:
            _discard(self._store, self._split, self._shard)
            return self._old
        _put_in_place(self._store, self._split, self._shard)
        return fresh

    def _reach(self, slot: int | None) -> bool:
        """Write what the old shard has before `slot`. False if it has a clip there, which stays."""
        while self._next is not None and (slot is None or self._next < slot):
            self._keep(self._next)
            self._next = next(self._slots, None)
        if slot is None or slot in self._stored:
            return False
        if self._next == slot:
            self._next = next(self._slots, None)
        return True

    def _keep(self, slot: int) -> None:
        if slot in self._failures:
            self._writer.fail(self._failures[slot])
            return
        row, clip_id, metadata_at = self._stored[slot]
        with closing(self._store.open(self._old.files.tar, digest=self._old.tar_digest)) as tar:
            metadata = self._metadata(tar, clip_id, metadata_at)
            payloads = [self._payload(tar, row, number) for number in range(len(row["payloads"]))]
        self._writer.add_stored(clip_id, row, metadata, payloads, str(json.loads(metadata)["decoder"]))

    def _metadata(self, tar: StoredFile, clip_id: str, offset: int) -> bytes:
        buffer = bytearray(min(_LONGEST_METADATA, self._old.tar_bytes - offset))
        tar.read_into(offset, memoryview(buffer)[: 2**16])
        content = json_content(bytes(buffer[: 2**16]))
        if content is None:  # longer than most
            tar.read_into(offset, memoryview(buffer))
            content = json_content(bytes(buffer))
        name = bytes(buffer[:100]).rstrip(b"\0")
        if content is None or name != f"{clip_id}.json".encode():
            raise damaged(self._store, f"{self._old.files.tar}: no metadata of {clip_id} where they belong")
        return content

    def _payload(self, tar: StoredFile, row: Any, number: int) -> NDArray[Any]:
        layout, place = self._spec.payloads[number], row["payloads"][number]
        values = np.empty(layout.shape, layout.dtype)
        content = values.reshape(-1).data.cast("B")
        tar.read_into(int(place["offset"]), content)
        if xxhash.xxh3_64_intdigest(content) != int(place["xxh3_64"]):
            raise damaged(self._store, f"{self._old.files.tar}: {layout.name} of slot {row['slot']} are not as written")
        return values


def settle(location: Location) -> None:
    """End the retries that a killed run has begun to put in place, and remove what others have left."""
    store = open_store(location)
    begun = {shard_of(file, f".json{RETRIED}") for file in store.names(COMMITS)}
    left = {shard_of(file, f".tar{RETRIED}") for file in store.names("shards")}
    for split, shard in sorted(found for found in begun | left if found):
        with store.lock(shard_files(split, shard).tar, wait=False) as alone:
            if alone:
                _settle_locked(store, split, shard)


def _settle_locked(store: Store, split: str, shard: int) -> None:
    if store.exists(retried_files(split, shard).commit):
        _put_in_place(store, split, shard)
    else:
        _discard(store, split, shard)


def _put_in_place(store: Store, split: str, shard: int) -> None:
    """May begin anew after a kill at any moment."""
    files, retried = shard_files(split, shard), retried_files(split, shard)
    fresh = read_commit(store, split, shard, file=retried.commit)
    store.remove(files.commit)
    store.move(retried.tar, files.tar)
    store.move(retried.idx, files.idx)
    if fresh.failures_xxh3_64 is None:
        store.remove(files.failures)
    else:
        store.move(retried.failures, files.failures)
    store.move(retried.commit, files.commit)


def _discard(store: Store, split: str, shard: int) -> None:
    retried = retried_files(split, shard)
    for file in (retried.commit, retried.tar, retried.idx, retried.failures):
        store.remove(file)


def _stored_clips(store: Store, commit: Commit, spec: CacheSpec) -> Iterator[tuple[int, tuple[Any, str, int]]]:
    """By slot, the row of the idx, the clip's id, and where in the tar its metadata are."""
    rows, plan = read_rows(store, commit, spec), PlanTable(store)
    first, count = plan.first_rows.get((commit.split, commit.shard), (0, 0))
    if commit.clips + commit.failed != count:
        raise CacheError(f"{store}: {commit.name}: {count} clips are planned, its commit has others")
    ids = [record["clip_id"] for record in plan.records(first, count)]
    offset = BLOCK_BYTES + padded(len(spec.fingerprint))  # behind the first member
    for row in rows:
        yield int(row["slot"]), (row, ids[int(row["slot"])], offset)
        last = row["payloads"][-1]
        offset = padded(int(last["offset"]) + int(last["bytes"]))
