"""The plain USTAR tar of a shard, written in one pass: the same members always give the same bytes.

Owner, group and time are zero. Arrays are npy files whose data starts at a multiple of 4096 bytes in the tar: the npy
header is padded with spaces, which every npy reader allows.
"""

from __future__ import annotations

import struct
from typing import Any

import xxhash
from numpy.typing import NDArray

from flcache.cache.storage import NewFile
from flcache.errors import CacheError

ALIGNMENT_BYTES = 4096
BLOCK_BYTES = 512
END_BYTES = 2 * BLOCK_BYTES
MAX_NAME_BYTES = 100
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12s")


class TarStream:
    """Members written to `file` one after the other, with the running digest of everything written."""

    def __init__(self, file: NewFile) -> None:
        self._file = file
        self._digest = xxhash.xxh3_64()
        self.num_bytes = 0

    def add(self, name: str, content: bytes) -> None:
        self._write(member_header(name, len(content)))
        self._write(content + bytes(_padding(len(content))))

    def add_array(self, name: str, array: NDArray[Any]) -> int:
        """Add a C-contiguous array as an npy file; returns the offset of its first value."""
        header = npy_header(array, start=self.num_bytes + BLOCK_BYTES)
        self._write(member_header(name, len(header) + array.nbytes) + header)
        offset = self.num_bytes
        self._write(array.reshape(-1).data.cast("B"))
        self._write(bytes(_padding(array.nbytes)))
        return offset

    def finish(self) -> str:
        """Write the end mark; returns the digest of the whole tar."""
        self._write(bytes(END_BYTES))
        return self._digest.hexdigest()

    def _write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.num_bytes += len(content)


def last_member_offset(tar_bytes: int, member_bytes: int) -> int:
    """Where the content of the last member, of `member_bytes`, starts in a tar of `tar_bytes`."""
    return tar_bytes - END_BYTES - _padding(member_bytes) - member_bytes


def member_header(name: str, num_bytes: int) -> bytes:
    """The 512-byte USTAR header of a regular file. Raises CacheError if USTAR cannot express it."""
    encoded = name.encode()
    if len(encoded) > MAX_NAME_BYTES:
        raise CacheError(f"{name}: longer than the {MAX_NAME_BYTES} bytes a tar allows; shorten the video's id")
    if num_bytes >= 8**11:
        raise CacheError(f"{name}: {num_bytes} bytes, a tar allows 8 GiB a file; use shorter clips")
    size = b"%011o\0" % num_bytes
    checksum = sum(_header(encoded, size, b" " * 8))
    return _header(encoded, size, b"%06o\0 " % checksum)


def npy_header(array: NDArray[Any], *, start: int) -> bytes:
    """The npy 1.0 header of `array`, padded so that the data of a file that starts at `start` is aligned."""
    fields = f"{{'descr': {array.dtype.str!r}, 'fortran_order': False, 'shape': {array.shape!r}, }}"
    minimum = 10 + len(fields) + 1
    length = minimum + -(start + minimum) % ALIGNMENT_BYTES
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length - 10) + fields.ljust(length - 11).encode() + b"\n"


def _header(name: bytes, size: bytes, checksum: bytes) -> bytes:
    zero, nothing = b"0000000\0", b""
    return _HEADER.pack(
        name, b"0000644\0", zero, zero, size, b"%011o\0" % 0, checksum, b"0", nothing,
        b"ustar\0", b"00", nothing, nothing, zero, zero, nothing, nothing,
    )  # fmt: skip


def padded(num_bytes: int) -> int:
    """Where the next member starts after `num_bytes`."""
    return num_bytes + _padding(num_bytes)


def _padding(num_bytes: int) -> int:
    return -num_bytes % BLOCK_BYTES
