"""Messages between the decode pool and its workers: a JSON head, then raw bytes, over a socket.

No pickle, and no shared memory that a killed process could leave behind.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import numpy as np

_LENGTHS = struct.Struct("<IQ")  # bytes of the head, bytes of the payload


def send(channel: socket.socket, head: dict[str, Any], payload: memoryview | None = None) -> None:
    """Send one message; the payload is not copied."""
    text = json.dumps(head).encode()
    channel.sendall(_LENGTHS.pack(len(text), payload.nbytes if payload else 0) + text)
    if payload:
        channel.sendall(payload)


def receive_head(channel: socket.socket) -> tuple[dict[str, Any], int]:
    """The next message, and how many bytes of payload follow. Raises EOFError when the other side is gone."""
    head_bytes, payload_bytes = _LENGTHS.unpack(receive_payload(channel, _LENGTHS.size).data)
    head: dict[str, Any] = json.loads(bytes(receive_payload(channel, head_bytes)))
    return head, payload_bytes


def receive_payload(channel: socket.socket, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The next `count` bytes."""
    content = np.empty(count, dtype=np.uint8)
    rest = content.data
    while rest:
        received = channel.recv_into(rest)
        if received == 0:
            raise EOFError("the other process is gone")
        rest = rest[received:]
    return content
