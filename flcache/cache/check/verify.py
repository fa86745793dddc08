"""Proving a cache: spec, plan, commits, failures, idx and every byte of every tar, on all cores at the disk's speed."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from flcache.cache.check.walk import PlannedClip, walk_tar
from flcache.cache.format.commit import Commit, committed_shards, read_commit, read_failures, repair_hint
from flcache.cache.format.index import Rows
from flcache.cache.format.plan import PlanTable
from flcache.cache.format.spec import CacheSpec, read_spec, spec_path
from flcache.cache.read.reader import read_rows
from flcache.cache.storage.local import is_file, shard_name, shard_paths
from flcache.errors import CacheError, DamagedError

OnShard = Callable[[bool], None]
"""Called once a shard, with whether it is damaged."""


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written."""

    file: str
    """Relative to the cache."""
    shard: str | None
    """`train-000012`; None for what no single shard has."""
    clip: str | None
    problem: str


@dataclass(frozen=True)
class Verification:
    shards: int
    """Committed shards that were looked at."""
    clips: int
    """Good clips in them."""
    missing: tuple[str, ...]
    """Shards that are planned, but not committed: still to be encoded, or lost."""
    damaged: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        return not self.damaged

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `flcache verify --json` prints them."""
        return {"ok": self.ok} | asdict(self) | {"missing": list(self.missing), "damaged": [*map(asdict, self.damaged)]}


def verify_cache(
    cache_dir: Path, *, threads: int | None = None, on_shard: OnShard = lambda damaged: None
) -> Verification:
    """Read everything below `cache_dir` that a commit vouches for; `threads` is one per core by default.

    Raises CacheError only if there is no cache at all: damage is returned.
    """
    if not is_file(spec_path(cache_dir)):
        read_spec(cache_dir)  # says so
    try:
        spec = read_spec(cache_dir)
        plan = PlanTable(cache_dir)
        planned = set(plan.first_rows)
    except CacheError as error:
        return Verification(0, 0, (), (_of_cache(cache_dir, str(error)),))
    found = sorted(committed_shards(cache_dir))
    prover = ShardProver(cache_dir, spec, plan)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="flcache-verify") as pool:
        results = []
        for clips, damaged in pool.map(lambda shard: prover.prove(*shard), found):
            results.append((clips, damaged))
            on_shard(bool(damaged))
    return Verification(
        shards=len(found),
        clips=sum(clips for clips, _ in results),
        missing=tuple(shard_name(*shard) for shard in sorted(planned - set(found))),
        damaged=tuple(damage for _, damaged in results for damage in damaged),
    )


class ShardProver:
    """Proves single shards; safe for many threads."""

    def __init__(self, cache_dir: Path, spec: CacheSpec, plan: PlanTable) -> None:
        self._cache_dir, self._spec, self._plan = cache_dir, spec, plan
        for column in ("clip_id", "video", "label"):  # loaded here, before the threads ask
            plan.column(column)

    def prove(self, split: str, shard: int) -> tuple[int, list[Damage]]:
        """The good clips of a committed shard, and what is wrong with it."""
        name, paths = shard_name(split, shard), shard_paths(self._cache_dir, split, shard)
        damaged: list[Damage] = []

        def add(path: Path, problem: str, clip: str | None = None) -> None:
            damaged.append(Damage(str(path.relative_to(self._cache_dir)), name, clip, problem))

        path, clips = paths.commit, 0
        try:
            commit = read_commit(self._cache_dir, split, shard)
            clips = commit.clips
            self._check_commit(commit)
            path = paths.failures
            self._check_failures(path, commit)
            path = paths.idx
            rows = read_rows(path, commit, self._spec, repair_hint(self._cache_dir))
            planned = self._clips(commit, rows)
            path = paths.tar
            for clip, problem in walk_tar(path, commit, self._spec, rows, planned):
                add(path, problem, clip)
        except CacheError as error:
            add(path, _without_place(str(error), path, self._cache_dir))
        return clips, damaged

    def _check_commit(self, commit: Commit) -> None:
        if commit.fingerprint != self._spec.fingerprint:
            raise DamagedError("of another spec than this cache's")
        _, planned = self._plan.first_rows.get((commit.split, commit.shard), (0, 0))
        if commit.clips + commit.failed != planned:
            raise DamagedError(f"{commit.clips} clips and {commit.failed} failures, {planned} clips are planned")

    def _check_failures(self, path: Path, commit: Commit) -> None:
        digest = xxhash.xxh3_64_hexdigest(path.read_bytes()) if is_file(path) else None
        if digest != commit.failures_xxh3_64:
            raise DamagedError("not the failures that were committed")

    def _clips(self, commit: Commit, rows: Rows) -> list[PlannedClip]:
        """The planned clips of the rows of an idx, which with the failures must be all that are planned."""
        first, planned = self._plan.first_rows[commit.split, commit.shard]
        failed = [failure.slot for failure in read_failures(self._cache_dir, commit)]
        slots = rows["slot"].astype(np.int64)
        if sorted([*failed, *slots.tolist()]) != list(range(planned)):
            raise DamagedError("its clips and the failures together are not the clips that are planned")
        columns = [self._plan.values(column, first + slots) for column in ("clip_id", "video", "label")]
        return [PlannedClip(*values) for values in zip(*columns, strict=True)]


def _of_cache(cache_dir: Path, problem: str) -> Damage:
    """Damage of the spec or the plan, from a message that starts with its path."""
    file = "plan.parquet" if "plan.parquet" in problem else "spec.json"
    return Damage(file, None, None, problem)


def _without_place(problem: str, path: Path, cache_dir: Path) -> str:
    """A message without the path and the advice, which stand beside it."""
    return problem.removeprefix(f"{path}: ").removesuffix(f"; {repair_hint(cache_dir)}")
