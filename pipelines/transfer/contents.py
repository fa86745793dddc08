"""What of a folder is pushed: a cache without its leftovers, or an exported model. In the order of pushing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from flcache.cache import LatentCache, summary
from flcache.cache.format.names import PLAN, SPEC
from flcache.cache.format.spec import read_spec
from flcache.errors import ConfigError
from flcache.predictor.saved import CARD

from .card import cache_card, model_card
from .manifest import Kind


@dataclass(frozen=True)
class Contents:
    """A folder that can be pushed."""

    kind: Kind
    identity: str
    files: list[list[str]]
    """In groups: a group is there before the next begins, so that no commit comes before its shard."""
    card: str
    """A README of it."""
    known: Mapping[str, str] = field(default_factory=dict)
    """Digests that files must have, by name: those that the commits keep."""


def contents_of(directory: Path, licence: str) -> Contents:
    """Raises ConfigError for a folder that is neither a cache nor an exported model."""
    kind, identity = identity_of(directory) or (None, "")
    if kind == "cache":
        return _cache(directory, licence)
    if kind == "model":
        names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
        kept = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
        cards = [name for name in kept if is_last(name)]
        groups = [[name for name in kept if name not in cards], cards]
        return Contents("model", identity, groups, model_card(directory, directory / cards[0], licence))
    raise ConfigError(
        f"{directory}: neither a cache (no {SPEC}) nor an exported model (no {CARD} in it); name the cache.dir of an "
        "encode, or the folder of an export"
    )


def identity_of(directory: Path) -> tuple[Kind, str] | None:
    """Of a cache its fingerprint, of a model the digest of its cards; None for a folder that is neither."""
    if (directory / SPEC).is_file():
        return "cache", read_spec(directory).fingerprint
    cards = sorted(directory.glob(f"**/{CARD}"))
    return ("model", xxhash.xxh3_64_hexdigest(b"".join(path.read_bytes() for path in cards))) if cards else None


def is_last(name: str) -> bool:
    """Whether the file is what makes a folder a cache or a model: it comes after all others."""
    return name == SPEC or name.rpartition("/")[2] == CARD


def _cache(directory: Path, licence: str) -> Contents:
    cache = LatentCache(directory)
    shards: list[str] = []
    known: dict[str, str] = {}
    for commit in cache.commits:
        files = commit.files
        shards += [files.tar, files.idx, *([files.failures] if commit.failures_xxh3_64 else [])]
        known |= {files.tar: commit.tar_xxh3_64, files.idx: commit.idx_xxh3_64}
    groups = [[PLAN, *shards], [commit.files.commit for commit in cache.commits], [SPEC]]
    card = cache_card(summary(directory), cache.spec.soft.get("encoder"), licence)
    return Contents("cache", cache.fingerprint, groups, card, known)
