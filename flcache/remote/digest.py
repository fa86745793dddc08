"""Size and digest of a file, and whether what has arrived is what lies there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Digest:
    """Size and content of a file."""

    bytes: int
    xxh3_64: str


def digest_of(path: Path) -> Digest:
    with path.open("rb") as stream:
        return digest_stream(stream)


def digest_stream(stream: BinaryIO) -> Digest:
    """Of all that is left to read of `stream`."""
    digest, size = _digest_stream(stream, xxhash.xxh3_64)
    return Digest(size, digest)


def md5_stream(stream: BinaryIO) -> str:
    return _digest_stream(stream, _md5)[0]


def md5_bytes(content: bytes) -> str:
    digest: str = _md5(content).hexdigest()
    return digest


def _md5(content: bytes = b"") -> Any:
    return hashlib.md5(content, usedforsecurity=False)


def _digest_stream(stream: BinaryIO, kind: Callable[[], Any]) -> tuple[str, int]:
    digest, size = kind(), 0
    for block in _blocks(stream):
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(BLOCK_BYTES):
        yield block
