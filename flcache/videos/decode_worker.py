"""The process behind a worker of DecodePool: `python -m flcache.videos.decode_worker FD PARENT MAX_BYTES`.

It reads requests from the socket FD, answers with headers or frames, and ends when the socket does or the parent dies.
A clip has MAX_BYTES at most, and the process a few times as much memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flcache.errors import FlcacheError
from flcache.videos import decord_reader, messages
from flcache.videos.decoders import ClipRequest, DecodedClip, decode_clip, probe

_PR_SET_PDEATHSIG = 1
_HERE = Path(__file__).parents[1]


_COPIES_OF_A_CLIP = 3  # as the decoder returns it, as an array, and with frames repeated
_ROOM = 2**30  # pictures a decoder keeps, stacks and arenas of threads: address space, hardly any of it touched


def main(fd: int, parent: int, max_bytes: int) -> None:
    _die_with(parent)
    _silence()
    _limit_memory(_COPIES_OF_A_CLIP * max_bytes + _ROOM)
    with socket.socket(fileno=fd) as channel:
        try:
            messages.send(channel, {"ready": True})
            while True:
                _answer(channel, max_bytes)
        except (EOFError, ConnectionError):
            return  # the pool is closed


def _answer(channel: socket.socket, max_bytes: int) -> None:
    head, _ = messages.receive_head(channel)
    if "probe" in head:
        infos = [_or_error(path, lambda path: asdict(probe(path))) for path in head["probe"]]
        messages.send(channel, {"infos": infos})
        return
    timestamps = None if head["timestamps"] is None else tuple(head["timestamps"])
    request = ClipRequest(head["frames"], head["start_s"], timestamps, head["stride"], head["short"])
    clip = _or_error(
        head["path"], lambda path: decode_clip(path, request, decoder=head["decoder"], max_bytes=max_bytes)
    )
    if isinstance(clip, DecodedClip):
        messages.send(channel, _head(clip), np.ascontiguousarray(clip.frames).reshape(-1).data)
    else:
        messages.send(channel, clip)


def _or_error(path: str, work: Callable[[Path], Any]) -> Any:
    """What `work` makes of the file, or the message that says why it cannot."""
    try:
        return work(Path(path))
    except FlcacheError as error:
        return {"error": str(error), "reason": getattr(error, "reason", "unknown")}
    except MemoryError:
        return {"error": f"{path}: reading it takes more memory than a worker has", "reason": "too large"}
    except Exception as error:  # one video must not end a run of a million, whatever a decoder throws
        return {"error": f"{path}: {_described(error)}", "reason": "our own error"}


def _described(error: Exception) -> str:
    """Type, words, and the last line of ours on the way to it."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_HERE)]
    place = f"{Path(ours[-1].filename).relative_to(_HERE)}:{ours[-1].lineno} in {ours[-1].name}"
    return f"{type(error).__name__}: {error} ({place})"


def _head(clip: DecodedClip) -> dict[str, object]:
    return {
        "shape": clip.frames.shape,
        "timestamps": clip.timestamps.tolist(),
        "mask": clip.mask.tolist(),
        "decoder": clip.decoder,
        "nominal": clip.nominal.tolist(),
    }


def _die_with(parent: int) -> None:
    """Also when hanging in native code, where the end of the socket would go unnoticed (Linux only)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _limit_memory(room: int) -> None:
    """No more address space than the libraries take, and `room` (Linux only)."""
    if sys.platform != "linux":
        return
    import resource

    import av  # noqa: F401

    decord_reader.missing()  # loads it
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + room
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _silence() -> None:
    """Native libraries write to the terminal behind Python's back; what matters comes back as an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
