"""The idx of a shard: what a loader needs for each clip, in fixed-width little-endian rows.

    header   magic `flc1idx\\n`, then rows, steps, payloads per clip and 0 as u4
    row      slot, flags, valid steps and 0 as u4; times in seconds as f4 per step;
             then per payload its offset in the tar, its bytes and its xxh3_64 as u8

Rows are the good clips in slot order. An offset points at the first value, behind the npy header.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.errors import DamagedError

MAGIC = b"flc1idx\n"
PADDED = 1
"""Flag: at least one step of the clip is made of padding only."""

_HEADER = np.dtype([("magic", "S8"), ("rows", "<u4"), ("steps", "<u4"), ("payloads", "<u4"), ("zero", "<u4")])
_PAYLOAD = np.dtype([("offset", "<u8"), ("bytes", "<u8"), ("xxh3_64", "<u8")])

Rows = NDArray[np.void]


def row_dtype(num_steps: int, num_payloads: int) -> np.dtype[Any]:
    numbers = [(name, "<u4") for name in ("slot", "flags", "valid_steps", "zero")]
    return np.dtype([*numbers, ("times", "<f4", (num_steps,)), ("payloads", _PAYLOAD, (num_payloads,))])


def index_bytes(rows: Rows) -> bytes:
    """The content of the idx file that holds `rows`."""
    num_steps, num_payloads = rows["times"].shape[1], rows["payloads"].shape[1]
    header = np.array([(MAGIC, len(rows), num_steps, num_payloads, 0)], dtype=_HEADER)
    return header.tobytes() + rows.tobytes()


def parse_index(raw: bytes, *, num_steps: int, num_payloads: int) -> Rows:
    """The rows in the content of an idx. Raises DamagedError, without the file's name, if header and size disagree."""
    dtype = row_dtype(num_steps, num_payloads)
    header = np.frombuffer(raw[: _HEADER.itemsize].ljust(_HEADER.itemsize, b"\0"), _HEADER)[0]
    num_rows = (len(raw) - _HEADER.itemsize) // dtype.itemsize
    expected = (MAGIC, num_rows, num_steps, num_payloads, 0)
    if header.item() != expected or len(raw) != index_size(num_rows, num_steps, num_payloads):
        raise DamagedError("header and size disagree")
    return np.frombuffer(raw, dtype=dtype, offset=_HEADER.itemsize)


def index_size(num_rows: int, num_steps: int, num_payloads: int) -> int:
    """Bytes of an idx."""
    return _HEADER.itemsize + num_rows * row_dtype(num_steps, num_payloads).itemsize
