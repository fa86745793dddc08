"""The process behind a worker of DecodePool: `python -m flcache.videos.decode_worker FD PARENT`.

It reads clip requests from the socket FD, answers with frames, and ends when the socket does or the parent dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import numpy as np

from flcache.errors import FlcacheError
from flcache.videos import messages
from flcache.videos.decoders import ClipRequest, DecodedClip, decode_clip

_PR_SET_PDEATHSIG = 1
_HERE = Path(__file__).parents[1]


def main(fd: int, parent: int) -> None:
    _die_with(parent)
    _silence()
    with socket.socket(fileno=fd) as channel:
        try:
            messages.send(channel, {"ready": True})
            while True:
                _answer(channel)
        except (EOFError, ConnectionError):
            return  # the pool is closed


def _answer(channel: socket.socket) -> None:
    head, _ = messages.receive(channel)
    timestamps = None if head["timestamps"] is None else tuple(head["timestamps"])
    request = ClipRequest(head["frames"], head["start_s"], timestamps, head["stride"], head["short"])
    try:
        clip = decode_clip(Path(head["path"]), request, decoder=head["decoder"])
    except FlcacheError as error:
        messages.send(channel, {"error": str(error), "reason": getattr(error, "reason", "unknown")})
    except Exception as error:  # one video must not end a run of a million, whatever a decoder throws
        messages.send(channel, {"error": f"{head['path']}: {_described(error)}", "reason": "our own error"})
    else:
        messages.send(channel, _head(clip), np.ascontiguousarray(clip.frames).reshape(-1).data)


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


def _silence() -> None:
    """Native libraries write to the terminal behind Python's back; what matters comes back as an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
