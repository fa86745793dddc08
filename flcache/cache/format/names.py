"""Names of the files of a cache, relative to it, and of the two members of a tar that are no clip's."""

from __future__ import annotations

import re
from typing import NamedTuple

from flcache.errors import CacheError

SPEC = "spec.json"
PLAN = "plan.parquet"
COMMITS = "commits"
RETRIED = ".retried"
FINGERPRINT_MEMBER = "__flc__/fingerprint"
CHANNELS_MEMBER = "__flc__/channels"

_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_SHARD_NAME = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_-]*)-([0-9]{6,})")


class ShardFiles(NamedTuple):
    """The files of a shard; `shard` is its name, such as `train-000123`."""

    shard: str
    tar: str
    idx: str
    commit: str
    failures: str


def shard_files(split: str, shard: int) -> ShardFiles:
    name = shard_name(split, shard)
    return ShardFiles(
        name, f"shards/{name}.tar", f"shards/{name}.idx", f"{COMMITS}/{name}.json", f"failures/{name}.jsonl"
    )


def retried_files(split: str, shard: int) -> ShardFiles:
    """The files of a shard that is to take the place of a committed one."""
    name, *files = shard_files(split, shard)
    return ShardFiles(name, *(file + RETRIED for file in files))


def shard_name(split: str, shard: int) -> str:
    """`train-000123`. Raises CacheError for a split that is no plain word."""
    if not _SPLIT.fullmatch(split):
        raise CacheError(f"split {split!r}: a split's name is made of letters, digits, `_` and `-`")
    return f"{split}-{shard:06d}"


def parse_shard_name(name: str) -> tuple[str, int] | None:
    """The split and shard of `train-000123`; None for any other name."""
    match = _SHARD_NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def shard_of(file: str, *suffixes: str) -> tuple[str, int] | None:
    """The split and shard of a file such as `shards/train-000123.tar`; None unless it has one of the `suffixes`."""
    shard, dot, suffix = file.rpartition("/")[2].partition(".")
    return parse_shard_name(shard) if dot + suffix in suffixes else None
