"""Folders of JSON and safetensors with digests, as checkpoints and exported predictors are.

A record is a JSON object whose `xxh3_64` is a digest of the rest of it, and which keeps size and digest of the files
beside it. Nothing is executed, and only plain files are opened.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError

OF_BAD_CONTENT = (
    SafetensorError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
"""What reading content of the wrong form may raise."""
MAX_TEXT_BYTES = 16 * 2**20
"""Larger JSON files are not read: flcache writes none."""


def sealed(content: dict[str, Any]) -> str:
    """The text of the record that holds `content`."""
    return json.dumps({**content, "xxh3_64": _seal(content)}, indent=1) + "\n"


def check_seal(content: dict[str, Any]) -> None:
    """Take the seal out of a record. Raises LookupError if it has none, ValueError if it is not that of its content."""
    if content.pop("xxh3_64") != _seal(content):
        raise ValueError("its bytes are not those that were written")


def file_digest(path: Path) -> dict[str, Any]:
    """Size and digest of a file."""
    digest, size = xxhash.xxh3_64(), 0
    with plain_file(path).open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "xxh3_64": digest.hexdigest()}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a small file. Raises OSError, or ValueError where there is none."""
    with plain_file(path).open("rb") as stream:
        raw = stream.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise ValueError(f"larger than {MAX_TEXT_BYTES} bytes")
    content = json.loads(raw)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def plain_file(path: Path) -> Path:
    """`path`. Raises ValueError unless it is a plain file: opening a pipe would block for ever."""
    if not path.is_file():
        raise ValueError("no such file" if not path.exists() else "not a plain file")
    return path


def flush(folder: Path) -> None:
    """fsync every file of `folder` and the folder itself: a rename must never reach the disk before them."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def one_line(error: Exception) -> str:
    """The words of `error`, for the end of a message."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _seal(content: dict[str, Any]) -> str:
    """The digest of a record without its seal; independent of the order of its keys."""
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())
