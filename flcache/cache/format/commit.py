"""The commit: the record written last, which alone says that a shard exists; and the failures beside it.

A commit holds neither times nor names of machines: the same plan, spec and machine give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flcache.cache.codecs.fidelity import Fidelity, parse_fidelity
from flcache.cache.format.record import parse_object, read_bytes, read_record, seal
from flcache.cache.format.spec import FORMAT
from flcache.cache.storage.local import is_file, parse_shard_name, shard_name, shard_paths, storage_errors, write_file
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
    """Latent vectors of valid steps that the channel sums of the shard are over."""
    decoders: dict[str, int]
    """Clips by the decoder that read them."""
    fidelity: Fidelity | None
    """Of what is stored, against what the codec was given; None if no clip is stored."""
    keep_fidelity: Fidelity | None
    """Of the encoder's latents as far as what is kept of them tells; None where all is kept."""

    @property
    def name(self) -> str:
        return shard_name(self.split, self.shard)


def repair_hint(cache_dir: Path) -> str:
    """What to do about damage in the cache at `cache_dir`."""
    return f'run "flcache repair {cache_dir} --config C" with the configuration it was made with'


def write_commit(cache_dir: Path, commit: Commit) -> None:
    """Make the shard exist. Its tar, idx and failures must be on the disk."""
    path = shard_paths(cache_dir, commit.split, commit.shard).commit
    write_file(path, seal({"format": FORMAT} | asdict(commit)))


def is_committed(cache_dir: Path, split: str, shard: int) -> bool:
    return is_file(shard_paths(cache_dir, split, shard).commit)


def read_commit(cache_dir: Path, split: str, shard: int, *, path: Path | None = None) -> Commit:
    """The commit of one shard, or what lies at `path` as such.

    Raises DamagedError if its record is not whole or not about this shard.
    """
    path = path or shard_paths(cache_dir, split, shard).commit
    content = read_record(path, repair=repair_hint(cache_dir))
    if content.pop("format", None) != FORMAT or not _is_commit(content) or content["shard"] != shard:
        raise DamagedError(f"{path}: not a commit of format {FORMAT}; {repair_hint(cache_dir)}")
    commit = Commit(**content | {name: parse_fidelity(content[name]) for name in FIDELITIES})
    if commit.split != split:
        raise DamagedError(f"{path}: says it is {commit.name}; {repair_hint(cache_dir)}")
    return commit


def read_commits(cache_dir: Path, *, fingerprint: str) -> list[Commit]:
    """All commits, by split and shard. Raises DamagedError for one that is not of this spec."""
    commits = [read_commit(cache_dir, split, shard) for split, shard in sorted(committed_shards(cache_dir))]
    for commit in commits:
        if commit.fingerprint != fingerprint:
            raise DamagedError(f"{cache_dir}: {commit.name} is of another spec; {repair_hint(cache_dir)}")
    return commits


def failures_bytes(failures: list[Failure]) -> bytes:
    """The content of a failures file: one JSON object a line."""
    return b"".join(json.dumps(asdict(failure), sort_keys=True).encode() + b"\n" for failure in failures)


def read_failures(cache_dir: Path, commit: Commit) -> list[Failure]:
    """The failed clips of a committed shard, by slot."""
    if not commit.failed:
        return []
    path = shard_paths(cache_dir, commit.split, commit.shard).failures
    lines = read_bytes(path, MAX_FAILURES_BYTES).splitlines()
    failures = [failure for failure in map(_parse_failure, lines) if failure]
    if len(lines) != commit.failed or len(failures) != commit.failed:
        raise DamagedError(
            f"{path}: does not hold the {commit.failed} failures of its commit; {repair_hint(cache_dir)}"
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


def committed_shards(cache_dir: Path) -> Iterator[tuple[str, int]]:
    """The split and shard of every file that is named as a commit, read or not."""
    folder = cache_dir / "commits"
    with storage_errors(folder):
        for path in folder.iterdir() if folder.is_dir() else ():
            shard = parse_shard_name(path.stem) if path.suffix == ".json" else None
            if shard is not None:
                yield shard


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
