"""What is in a cache, also an unfinished one: how much is done, what failed and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

from flcache.cache.codecs.fidelity import Fidelity, merge
from flcache.cache.format.commit import Commit, Failure
from flcache.cache.format.names import shard_of
from flcache.cache.format.plan_table import PlanTable
from flcache.cache.format.spec import FORMAT
from flcache.cache.read.cache import LatentCache
from flcache.cache.storage import Location, Store


def summary(location: Location) -> dict[str, Any]:
    """Plain values for `flcache inspect-cache`. Raises CacheError if there is no cache or a record is damaged."""
    cache = LatentCache(location)
    commits, codec, keep, failures = cache.commits, cache.spec.codec, cache.spec.hard.get("keep"), cache.failures()
    components = (cache.spec.hard.get("calibration") or {}).get("pca")
    return {
        "path": str(cache.store),
        "format": FORMAT,
        "fingerprint": cache.fingerprint,
        "latents": {
            "shape": list(cache.latent_shape),
            "codec": codec.name,
            "dtype": codec.payloads(cache.latent_shape)[0].dtype.name,
            "clip_bytes": codec.clip_bytes(cache.latent_shape),
        },
        "arrays": {name: list(shape) for name, shape in cache.spec.arrays.items()},
        "keep": keep and {**keep, "variance_kept": components and components["variance_kept"]},
        "fidelity": {
            "codec": _fidelity(commit.fidelity for commit in commits),
            "keep": _fidelity(commit.keep_fidelity for commit in commits),
        },
        "encoder": cache.spec.hard.get("encoder"),
        "context": cache.spec.hard["context"],
        "statistics": cache.spec.channels is not None,
        "splits": _splits(cache),
        "bytes_on_disk": _bytes_on_disk(cache.store),
        "decoders": dict(sorted(sum((Counter(commit.decoders) for commit in commits), Counter[str]()).items())),
        "failures": [asdict(failure) for failure in failures],
        "failure_groups": [asdict(group) for group in failure_groups(failures)],
        "leftovers": _leftovers(cache.store, commits),
    }


@dataclass(frozen=True)
class FailureGroup:
    """Clips that failed at one stage for one reason."""

    stage: str
    reason: str
    count: int
    example: Failure
    """The first of them."""

    def __str__(self) -> str:
        text = f"{self.count} x {self.stage}: {self.reason}, such as {self.example.clip_id} ({self.example.message})"
        ours = self.reason == "our own error"
        return f"{text}; this is a bug of flcache, not of the video: please report it" if ours else text


def failure_groups(failures: Iterable[Failure]) -> list[FailureGroup]:
    """The `failures` by stage and reason, largest group first."""
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        groups.setdefault((failure.stage, failure.reason), []).append(failure)
    found = [FailureGroup(*key, len(members), members[0]) for key, members in groups.items()]
    return sorted(found, key=lambda group: -group.count)


def _fidelity(fidelities: Iterable[Fidelity | None]) -> dict[str, Any] | None:
    merged = merge(fidelity for fidelity in fidelities if fidelity)
    return asdict(merged) if merged else None


def _splits(cache: LatentCache) -> dict[str, dict[str, int]]:
    plan, found = PlanTable(cache.store), {}
    for split, progress in cache.progress().items():
        videos = plan.column("video_id").filter(pc.equal(plan.column("split"), split))
        tar_bytes = sum(commit.tar_bytes for commit in cache.commits if commit.split == split)
        found[split] = asdict(progress) | {"videos": pc.count_distinct(videos).as_py(), "tar_bytes": tar_bytes}
    return found


def _bytes_on_disk(store: Store) -> int:
    """A file of a running job may be gone before its size is read."""
    return sum(store.size(file) or 0 for file in [*store.names(), *store.unpublished()])


def _leftovers(store: Store, commits: tuple[Commit, ...]) -> list[str]:
    """Files of killed or running runs: unpublished ones, and shards without a commit."""
    committed = {(commit.split, commit.shard) for commit in commits}
    shards = ((file, shard_of(file, ".tar", ".idx", ".jsonl")) for file in store.names())
    return sorted([*store.unpublished(), *(file for file, shard in shards if shard and shard not in committed)])
