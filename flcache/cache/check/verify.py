"""Verifying a cache: spec, plan, commits, failures, idx and every byte of every tar, on all cores at disk speed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from os import cpu_count
from typing import Any

import numpy as np
import xxhash

from flcache.cache.check.walk import PlannedClip, Problem, walk_tar
from flcache.cache.format.commit import (
    MAX_FAILURES_BYTES,
    Commit,
    committed_shards,
    read_commit,
    read_failures,
    repair_hint,
)
from flcache.cache.format.index import Rows
from flcache.cache.format.names import PLAN, SPEC, shard_files, shard_name
from flcache.cache.format.plan_table import PlanTable
from flcache.cache.format.spec import CacheSpec, read_spec
from flcache.cache.read.reader import read_rows
from flcache.cache.storage import Location, Store, open_store
from flcache.errors import CacheError, DamagedError, RemoteError

_READINGS = 3


@dataclass(frozen=True)
class Damage:
    """A difference from what was written."""

    file: str
    """Relative to the cache."""
    shard: str | None
    """`train-000012`; None where the spec or the plan is damaged."""
    clip: str | None
    problem: str


@dataclass(frozen=True)
class Verification:
    shards: int
    """Committed shards, all of them read."""
    clips: int
    """Good clips in them."""
    missing: tuple[str, ...]
    """Planned shards without a commit: still to be encoded, or lost."""
    damaged: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        return not self.damaged

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `flcache verify --json` prints them."""
        return {"ok": self.ok} | asdict(self) | {"missing": list(self.missing), "damaged": [*map(asdict, self.damaged)]}


def verify_cache(
    location: Location, *, threads: int | None = None, on_shard: Callable[[bool], None] = lambda damaged: None
) -> Verification:
    """Read every committed byte of the cache at `location`, where it lies; `threads` is one per core by default.

    `on_shard` is called once a shard, with whether it is damaged. Raises CacheError only if there is no cache at all:
    damage is returned.
    """
    store = open_store(location).direct()
    if not store.exists(SPEC):
        read_spec(store)  # says so
    try:
        spec = read_spec(store)
        plan = PlanTable(store)
        planned = set(plan.first_rows)
    except CacheError as error:
        return Verification(0, 0, (), (Damage(PLAN if PLAN in str(error) else SPEC, None, None, str(error)),))
    found = sorted(committed_shards(store))
    verifier = ShardVerifier(store, spec, plan)
    with ThreadPoolExecutor(threads or cpu_count() or 1, thread_name_prefix="flcache-verify") as pool:
        results = []
        for clips, damaged in pool.map(lambda shard: verifier.verify(*shard), found):
            results.append((clips, damaged))
            on_shard(bool(damaged))
    return Verification(
        shards=len(found),
        clips=sum(clips for clips, _ in results),
        missing=tuple(shard_name(*shard) for shard in sorted(planned - set(found))),
        damaged=tuple(damage for _, damaged in results for damage in damaged),
    )


class ShardVerifier:
    """Verifies single shards; safe for many threads."""

    def __init__(self, store: Store, spec: CacheSpec, plan: PlanTable) -> None:
        self._store, self._spec, self._plan = store, spec, plan
        for column in ("clip_id", "video", "label"):  # loaded before the threads ask for them
            plan.column(column)

    def verify(self, split: str, shard: int) -> tuple[int, list[Damage]]:
        """The good clips of a committed shard, and what is wrong with it."""
        files = shard_files(split, shard)
        damaged: list[Damage] = []

        def add(problem: str, clip: str | None = None) -> None:
            damaged.append(Damage(file, files.shard, clip, problem))

        file, clips = files.commit, 0
        try:
            commit = read_commit(self._store, split, shard)
            clips = commit.clips
            self._check_commit(commit)
            file = files.failures
            self._check_failures(file, commit)
            file = files.idx
            rows = read_rows(self._store, commit, self._spec)
            planned = self._clips(commit, rows)
            file = files.tar
            for clip, problem in self._problems(commit, rows, planned):
                add(problem, clip)
        except RemoteError:  # nothing is known of a file that cannot be read
            raise
        except CacheError as error:
            # A Damage has the file in a field of its own, and the command line gives the advice once.
            add(str(error).removeprefix(f"{self._store}/{file}: ").removesuffix(f"; {repair_hint(self._store)}"))
        return clips, damaged

    def _problems(self, commit: Commit, rows: Rows, planned: list[PlannedClip]) -> list[Problem]:
        """What is wrong with the tar. One that seems damaged is read again: a network may have spoiled it."""
        readings: list[list[Problem]] = []
        while len(readings) < _READINGS and (not readings or readings[-1]):
            readings.append(list(walk_tar(self._store, commit, self._spec, rows, planned)))
        return min(readings, key=len)

    def _check_commit(self, commit: Commit) -> None:
        if commit.fingerprint != self._spec.fingerprint:
            raise DamagedError("of another spec than this cache's")
        _, planned = self._plan.first_rows.get((commit.split, commit.shard), (0, 0))
        if commit.clips + commit.failed != planned:
            raise DamagedError(f"{commit.clips} clips and {commit.failed} failures, {planned} clips are planned")

    def _check_failures(self, file: str, commit: Commit) -> None:
        content = self._store.read(file, MAX_FAILURES_BYTES) if self._store.exists(file) else None
        digest = None if content is None else xxhash.xxh3_64_hexdigest(content)
        if digest != commit.failures_xxh3_64:
            raise DamagedError("not the failures that were committed")

    def _clips(self, commit: Commit, rows: Rows) -> list[PlannedClip]:
        """The planned clip of every row. Raises DamagedError unless rows and failures fill the planned slots."""
        first, planned = self._plan.first_rows[commit.split, commit.shard]
        failed = [failure.slot for failure in read_failures(self._store, commit)]
        slots = rows["slot"].astype(np.int64)
        if sorted([*failed, *slots.tolist()]) != list(range(planned)):
            raise DamagedError("its clips and the failures together are not the clips that are planned")
        columns = [self._plan.values(column, first + slots) for column in ("clip_id", "video", "label")]
        return [PlannedClip(*values) for values in zip(*columns, strict=True)]
