"""Messages between the decode pool and its workers: a JSON head, then raw bytes, over a socket.

No pickle, and no file that a killed process could leave behind. Where the system has `memfd_create` (Linux), the bytes
lie in anonymous memory that is sealed, so that nobody can change or shorten it any more, and is passed on without a
copy; elsewhere they follow through the socket.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_LENGTHS = struct.Struct("<IQ")  # bytes of the head, bytes of the payload
_SHARES_MEMORY = hasattr(os, "memfd_create")
_SEALS = (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE) if _SHARES_MEMORY else 0

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Payload:
    """The bytes that come with a head."""

    def __init__(self, channel: socket.socket, num_bytes: int, descriptors: list[int]) -> None:
        self._channel, self.num_bytes, self._descriptors = channel, num_bytes, descriptors

    def read(self) -> Bytes:
        """To be called once. Raises EOFError when the other side is gone, or sends other bytes than it says."""
        if not self._descriptors:
            return _receive(self._channel, self.num_bytes)
        memory = self._descriptors[0]
        if fcntl.fcntl(memory, fcntl.F_GET_SEALS) & _SEALS != _SEALS or os.fstat(memory).st_size != self.num_bytes:
            raise EOFError("the other process sends memory that it can still change")
        return np.frombuffer(mmap.mmap(memory, self.num_bytes, flags=mmap.MAP_PRIVATE), dtype=np.uint8)

    def __del__(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


def send(channel: socket.socket, head: dict[str, Any], payload: memoryview | None = None) -> None:
    """Send one message."""
    text = json.dumps(head).encode()
    start = _LENGTHS.pack(len(text), payload.nbytes if payload else 0) + text
    if not payload:
        channel.sendall(start)
    elif not _SHARES_MEMORY:
        channel.sendall(start)
        channel.sendall(payload)
    else:
        with _sealed_memory(payload) as memory:
            sent = socket.send_fds(channel, [start], [memory])
        channel.sendall(start[sent:])


def receive_head(channel: socket.socket) -> tuple[dict[str, Any], Payload]:
    """The next message. Raises EOFError when the other side is gone."""
    lengths, descriptors, _, _ = socket.recv_fds(channel, _LENGTHS.size, 1)
    payload = Payload(channel, 0, descriptors)
    if not lengths:
        raise EOFError("the other process is gone")
    lengths += _receive(channel, _LENGTHS.size - len(lengths)).tobytes()
    head_bytes, payload.num_bytes = _LENGTHS.unpack(lengths)
    head: dict[str, Any] = json.loads(bytes(_receive(channel, head_bytes)))
    return head, payload


@contextmanager
def _sealed_memory(content: memoryview) -> Iterator[int]:
    """A descriptor of memory that holds `content` and never changes again."""
    memory = os.memfd_create("flcache-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = content
        while rest:
            rest = rest[os.write(memory, rest) :]
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        yield memory
    finally:
        os.close(memory)


def _receive(channel: socket.socket, count: int) -> Bytes:
    """The next `count` bytes."""
    content = np.empty(count, dtype=np.uint8)
    rest = content.data
    while rest:
        received = channel.recv_into(rest)
        if received == 0:
            raise EOFError("the other process is gone")
        rest = rest[received:]
    return content
