"""The commit: the record written last, which alone says that a shard exists; and the failures beside it.

A commit holds neither times nor names of machines: the same plan, spec and machine give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from flcache.cache.codecs.fidelity import Fidelity
from flcache.cache.format.names import COMMITS, ShardFiles, shard_files, shard_name, shard_of
from flcache.cache.format.record import MAX_RECORD_BYTES, parse_fields, parse_object, parse_record, seal
from flcache.cache.format.spec import FORMAT
from flcache.cache.storage import Location, Store, open_store
from flcache.errors import DamagedError, Reason, Stage
from flcache.remote import Digest

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
    def tar_digest(self) -> Digest:
        return Digest(self.tar_bytes, self.tar_xxh3_64)

    @property
    def files(self) -> ShardFiles:
        return shard_files(self.split, self.shard)


def repair_hint(store: Store) -> str:
    """What to do about damage in a cache."""
    return f'run "flcache repair {store} --config C" with the configuration it was made with'


def damaged(store: Store, what: str) -> DamagedError:
    """The error for damage of a file, with the remedy; `what` is such as `plan.parquet: not in shard order`."""
    return DamagedError(f"{store}/{what}; {repair_hint(store)}")


def write_commit(store: Store, commit: Commit, *, file: str | None = None) -> bool:
    """Write the commit, to `file` if that is given; tar, idx and failures must be published already.

    False if there is one: of two that write a shard, where nothing could be locked, the first stands.
    """
    return store.write_new(file or commit.files.commit, seal({"format": FORMAT} | asdict(commit)))


def is_committed(location: Location, split: str, shard: int) -> bool:
    return open_store(location).exists(shard_files(split, shard).commit)


def read_commit(store: Store, split: str, shard: int, *, file: str | None = None) -> Commit:
    """The commit of a shard, in `file` if that is given. Raises DamagedError unless it is whole and of this shard."""
    file = file or shard_files(split, shard).commit
    return _parse_commit(store, split, shard, file, store.read(file, MAX_RECORD_BYTES))


def _parse_commit(store: Store, split: str, shard: int, file: str, raw: bytes) -> Commit:
    content = parse_record(store, file, raw, repair=repair_hint(store))
    commit = parse_fields(Commit, content) if content.pop("format", None) == FORMAT else None
    if commit is None or commit.shard != shard:
        raise damaged(store, f"{file}: not a commit of format {FORMAT}")
    if commit.split != split:
        raise damaged(store, f"{file}: says it is {commit.name}")
    return commit


def read_commits(location: Location, *, fingerprint: str) -> list[Commit]:
    """All commits, by split and shard. Raises DamagedError for one that is not of this spec."""
    store = open_store(location)
    shards = sorted(committed_shards(store))
    files = [shard_files(*shard).commit for shard in shards]
    records = zip(shards, files, store.read_all(files, MAX_RECORD_BYTES), strict=True)
    commits = [_parse_commit(store, *shard, file, raw) for shard, file, raw in records]
    for commit in commits:
        if commit.fingerprint != fingerprint:
            raise DamagedError(f"{store}: {commit.name} is of another spec; {repair_hint(store)}")
    return commits


def failures_bytes(failures: list[Failure]) -> bytes:
    """The content of a failures file: one JSON object a line."""
    return b"".join(json.dumps(asdict(failure), sort_keys=True).encode() + b"\n" for failure in failures)


def read_failures(location: Location, commit: Commit) -> list[Failure]:
    """The failed clips of a committed shard, by slot."""
    return read_all_failures(location, [commit])


def read_all_failures(location: Location, commits: Iterable[Commit]) -> list[Failure]:
    """The failed clips of these shards, shard by shard."""
    store, found = open_store(location), [commit for commit in commits if commit.failed]
    raws = store.read_all([commit.files.failures for commit in found], MAX_FAILURES_BYTES)
    return [failure for commit, raw in zip(found, raws, strict=True) for failure in _parse_failures(store, commit, raw)]


def _parse_failures(store: Store, commit: Commit, raw: bytes) -> list[Failure]:
    lines = raw.splitlines()
    failures = [failure for failure in map(_parse_failure, lines) if failure]
    if len(lines) != commit.failed or len(failures) != commit.failed:
        raise damaged(store, f"{commit.files.failures}: does not hold the {commit.failed} failures of its commit")
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


def check_size(store: Store, file: str, digest: Digest) -> None:
    """Raises DamagedError unless `file` is there and as large as its commit says, as far as the store knows."""
    found = store.size(file, digest=digest)
    if found != digest.bytes:
        state = "missing" if found is None else f"{found} bytes"
        raise damaged(store, f"{file}: {state}, commit says {digest.bytes} bytes")
