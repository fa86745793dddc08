"""The commit: the record written last, which alone says that a shard exists; and the failures beside it.

A commit holds neither times nor names of machines: the same plan, spec and machine give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from flcache.cache.codecs.fidelity import Fidelity, parse_fidelity
from flcache.cache.format.names import COMMITS, shard_files, shard_name, shard_of
from flcache.cache.format.record import parse_object, read_record, seal
from flcache.cache.format.spec import FORMAT
from flcache.cache.storage import Location, Store, open_store
from flcache.errors import DamagedError, Reason, Stage

MAX_FAILURES_BYTES = 2**30
FIDELITIES = ("fidelity", "keep_fidelity")


@dataclass(frozen=True)
class Failure:
    """A clip that is planned, but not in its shard, and why."""

    clip_id: str
    slot: int
    video: str
    stage: str
    """One of `flcache.errors.Stage`, and the reason one of `flcache.errors.Reason`, unless a newer flcache wrote it."""
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
    """Of the failures file; None if no clip failed."""
    positions: int
    """Latent vectors that the channel sums of the shard add up: those of valid steps."""
    decoders: dict[str, int]
    """Clips by the decoder that read them."""
    fidelity: Fidelity | None
    """Of what the codec stored, against what it was given; None if no clip is stored."""
    keep_fidelity: Fidelity | None
    """Of the encoder's latents as rebuilt from what is kept of them, against themselves; None where all is kept."""

    @property
    def name(self) -> str:
        return shard_name(self.split, self.shard)


def repair_hint(store: Store) -> str:
    """What to do about damage in a cache."""
    return f'run "flcache repair {store} --config C" with the configuration it was made with'


def write_commit(store: Store, commit: Commit) -> None:
    """Make the shard exist. Its tar, idx and failures must be published."""
    store.write(shard_files(commit.split, commit.shard).commit, seal({"format": FORMAT} | asdict(commit)))


def is_committed(location: Location, split: str, shard: int) -> bool:
    return open_store(location).exists(shard_files(split, shard).commit)


def read_commit(store: Store, split: str, shard: int, *, file: str | None = None) -> Commit:
    """The commit of one shard, read from `file` where that is given.

    Raises DamagedError if its record is not whole or not about this shard.
    """
    file = file or shard_files(split, shard).commit
    content = read_record(store, file, repair=repair_hint(store))
    if content.pop("format", None) != FORMAT or not _is_commit(content) or content["shard"] != shard:
        raise DamagedError(f"{store}/{file}: not a commit of format {FORMAT}; {repair_hint(store)}")
    commit = Commit(**content | {name: parse_fidelity(content[name]) for name in FIDELITIES})
    if commit.split != split:
        raise DamagedError(f"{store}/{file}: says it is {commit.name}; {repair_hint(store)}")
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
    store, file = open_store(location), shard_files(commit.split, commit.shard).failures
    lines = store.read(file, MAX_FAILURES_BYTES).splitlines()
    failures = [failure for failure in map(_parse_failure, lines) if failure]
    if len(lines) != commit.failed or len(failures) != commit.failed:
        raise DamagedError(
            f"{store}/{file}: does not hold the {commit.failed} failures of its commit; {repair_hint(store)}"
        )
    return failures


def stage_of(reason: Reason) -> Stage:
    """Where latents with this reason have failed: an encoder makes values that are not finite, a codec has a range."""
    return "encode" if reason == "not finite" else "write"


def _parse_failure(line: bytes) -> Failure | None:
    """A row of a failures file; the class of an error, which files held before reasons, says nothing and is left out.

    None if it is no failure.
    """
    row = parse_object(line) or {}
    if row.pop("error", None) is not None:
        row.setdefault("reason", "no file" if row.get("stage") == "find" else "unknown")
    numbers, names = {"slot", "attempts"}, {field.name for field in fields(Failure)}
    is_failure = set(row) == names and all(type(row[name]) is (int if name in numbers else str) for name in names)
    return Failure(**row) if is_failure else None


def committed_shards(location: Location) -> Iterator[tuple[str, int]]:
    """The split and shard of every file that is named as a commit, whatever it holds; in any order."""
    shards = (shard_of(file, ".json") for file in open_store(location).names(COMMITS))
    return (shard for shard in shards if shard is not None)


def check_size(store: Store, file: str, num_bytes: int) -> None:
    """Raises DamagedError unless `file` is there and has the `num_bytes` that its commit says."""
    found = store.size(file)
    if found != num_bytes:
        state = "missing" if found is None else f"{found} bytes"
        raise DamagedError(f"{store}/{file}: {state}, commit says {num_bytes} bytes; {repair_hint(store)}")


def _is_commit(content: dict[str, Any]) -> bool:
    """Whether every field is there and of its type."""
    if set(content) != {field.name for field in fields(Commit)}:
        return False
    counts = [content[name] for name in ("shard", "clips", "failed", "tar_bytes", "positions")]
    texts = [content[name] for name in ("split", "fingerprint", "tar_xxh3_64", "idx_xxh3_64")]
    decoders = content["decoders"]
    return (
        all(type(count) is int and 0 <= count < 2**63 for count in counts)
        and all(isinstance(text, str) for text in texts)
        and isinstance(content["failures_xxh3_64"], str | None)
        and isinstance(decoders, dict)
        and all(type(count) is int for count in decoders.values())
        and all(content[name] is None or parse_fidelity(content[name]) for name in FIDELITIES)
    )
