"""The commit: the record written last, which alone says that a shard exists; and the failures beside it.

A commit holds neither times nor names of machines: the same plan, spec and machine give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from flcache.cache.codecs.fidelity import Fidelity
from flcache.cache.format.names import COMMITS, ShardFiles, shard_files, shard_name, shard_of
from flcache.cache.format.record import parse_fields, parse_object, read_record, seal
from flcache.cache.format.spec import FORMAT
from flcache.cache.storage import Location, Store, open_store
from flcache.errors import DamagedError, Reason, Stage

MAX_FAILURES_BYTES = 2**30


@dataclass(frozen=True)
class Failure:
    """Why a planned clip is not in its shard."""

    clip_id: str
    slot: int
    video: str
    stage: str
    """A `flcache.errors.Stage`, and `reason` a `flcache.errors.Reason`; a newer flcache may have others."""
    reason: str
    message: str
    attempts: int


@dataclass(frozen=True)
class Commit:
    split: str
    shard: int
    fingerprint: str
    clips: int
    """Good clips, those in the tar."""
    failed: int
    tar_bytes: int
    tar_xxh3_64: str
    idx_xxh3_64: str
    failures_xxh3_64: str | None
    """Digest of the failures file; None if no clip failed."""
    positions: int
    """Latent vectors that the channel sums of the shard add up: those of valid steps."""
    decoders: dict[str, int]
    """Clips by the decoder that read them."""
    fidelity: Fidelity | None
    """Of the stored latents to those that the codec was given; None if no clip is stored."""
    keep_fidelity: Fidelity | None
    """Of latents reconstructed from their reduction to the encoder's; None without reduction."""

    @property
    def name(self) -> str:
        return shard_name(self.split, self.shard)

    @property
    def files(self) -> ShardFiles:
        return shard_files(self.split, self.shard)


def repair_hint(store: Store) -> str:
    """What to do about damage in a cache."""
    return f'run "flcache repair {store} --config C" with the configuration it was made with'


def damaged(store: Store, what: str) -> DamagedError:
    """The error for damage of a file, with the remedy; `what` is such as `plan.parquet: not in shard order`."""
    return DamagedError(f"{store}/{what}; {repair_hint(store)}")


def write_commit(store: Store, commit: Commit, *, file: str | None = None) -> None:
    """Write the commit, to `file` if that is given; tar, idx and failures must be published already."""
    store.write(file or commit.files.commit, seal({"format": FORMAT} | asdict(commit)))


def is_committed(location: Location, split: str, shard: int) -> bool:
    return open_store(location).exists(shard_files(split, shard).commit)


def read_commit(store: Store, split: str, shard: int, *, file: str | None = None) -> Commit:
    """The commit of a shard, in `file` if that is given. Raises DamagedError unless it is whole and of this shard."""
    file = file or shard_files(split, shard).commit
    content = read_record(store, file, repair=repair_hint(store))
    commit = parse_fields(Commit, content) if content.pop("format", None) == FORMAT else None
    if commit is None or commit.shard != shard:
        raise damaged(store, f"{file}: not a commit of format {FORMAT}")
    if commit.split != split:
        raise damaged(store, f"{file}: says it is {commit.name}")
    return commit


def read_commits(location: Location, *, fingerprint: str) -> list[Commit]:
    """All commits, by split and shard. Raises DamagedError for one that is not of this spec."""
    store = open_store(location)
    commits = [read_commit(store, split, shard) for split, shard in sorted(committed_shards(store))]
    for commit in commits:
        if commit.fingerprint != fingerprint:
            raise DamagedError(f"{store}: {commit.name} is of another spec; {repair_hint(store)}")
    return commits


def failures_bytes(failures: list[Failure]) -> bytes:
    """The content of a failures file: one JSON object a line."""
    return b"".join(json.dumps(asdict(failure), sort_keys=True).encode() + b"\n" for failure in failures)


def read_failures(location: Location, commit: Commit) -> list[Failure]:
    """The failed clips of a committed shard, by slot."""
    if not commit.failed:
        return []
    store, file = open_store(location), commit.files.failures
    lines = store.read(file, MAX_FAILURES_BYTES).splitlines()
    failures = [failure for failure in map(_parse_failure, lines) if failure]
    if len(lines) != commit.failed or len(failures) != commit.failed:
        raise damaged(store, f"{file}: does not hold the {commit.failed} failures of its commit")
    return failures


def stage_of(reason: Reason) -> Stage:
    """The stage that a ValueRangeError blames: the encoder for values that are not finite, the codec for its range."""
    return "encode" if reason == "not finite" else "write"


def _parse_failure(line: bytes) -> Failure | None:
    """The failure in a line of a failures file, or None. Older lines have an `error` class instead of a reason."""
    row = parse_object(line) or {}
    if row.pop("error", None) is not None:
        row.setdefault("reason", "no file" if row.get("stage") == "find" else "unknown")
    return parse_fields(Failure, row)


def committed_shards(location: Location) -> Iterator[tuple[str, int]]:
    """The split and shard of every file with the name of a commit, in any order; the files are not read."""
    return filter(None, (shard_of(file, ".json") for file in open_store(location).names(COMMITS)))


def check_size(store: Store, file: str, num_bytes: int) -> None:
    """Raises DamagedError unless `file` is there and has the `num_bytes` that its commit says."""
    found = store.size(file)
    if found != num_bytes:
        state = "missing" if found is None else f"{found} bytes"
        raise damaged(store, f"{file}: {state}, commit says {num_bytes} bytes")
