"""Frames come from a worker as memory that it can no longer change, or not at all."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flcache.videos import messages

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd_create on this system")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_sent_arrives_and_can_be_written_to(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    content = np.random.default_rng(0).integers(0, 255, 300_000, dtype=np.uint8)
    before = descriptors()
    messages.send(theirs, {"shape": [300_000]}, content.data)
    head, payload = messages.receive_head(ours)
    found = payload.read()
    assert head == {"shape": [300_000]} and payload.num_bytes == 300_000 and (found == content).all()
    found[0] ^= 255
    assert found[0] != content[0], "the copy is this process's own"
    del found, payload
    assert descriptors() == before, "nothing is left open"


def test_a_payload_that_nobody_reads_leaves_nothing_open(ends: tuple[socket.socket, socket.socket]) -> None:
    before = descriptors()
    for _ in range(3):
        messages.send(ends[1], {}, np.zeros(5000, np.uint8).data)
        _, payload = messages.receive_head(ends[0])
        del payload
    assert descriptors() == before


@pytest.mark.parametrize("lie", ["not sealed", "shorter than it says"])
def test_memory_that_could_still_change_is_refused(ends: tuple[socket.socket, socket.socket], lie: str) -> None:
    """A worker that a video has taken over could shorten it while this process reads, which would end this process."""
    ours, theirs = ends
    memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(memory, bytes(4000))
    if lie != "not sealed":
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    says = 4000 if lie == "not sealed" else 8000
    socket.send_fds(theirs, [messages._LENGTHS.pack(2, says) + b"{}"], [memory])
    os.close(memory)
    _, payload = messages.receive_head(ours)
    with pytest.raises(EOFError, match="memory that it can still change"):
        payload.read()


def test_without_such_memory_the_bytes_come_through_the_socket(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "_SHARES_MEMORY", False)
    content = np.arange(1000, dtype=np.uint16).view(np.uint8)
    messages.send(ends[1], {"frames": 1}, content.data)
    head, payload = messages.receive_head(ends[0])
    assert head == {"frames": 1} and (payload.read() == content).all()


def test_the_end_of_the_other_side_is_an_error(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].close()
    with pytest.raises(EOFError, match="gone"):
        messages.receive_head(ends[0])
