"""The process of a DecodePool worker: `python -m flcache.videos.decode_worker FD PARENT MAX_BYTES`.

It reads requests from the socket FD, answers with headers or frames, and ends when the socket closes or the parent
dies. A clip has MAX_BYTES at most, and the process a few times as much memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flcache.errors import FlcacheError
from flcache.videos import decord_reader, messages
from flcache.videos.decoders import ClipRequest, DecodedClip, OpenedVideo, probe
from flcache.videos.video_file import VideoFile, from_message

_PR_SET_PDEATHSIG = 1
_HERE = Path(__file__).parents[1]
_COPIES_OF_A_CLIP = 3  # as the decoder returns it, as an array, and with frames repeated
_ROOM = 2**30  # address space, mostly unused, for pictures that a decoder keeps, stacks and arenas of threads


def main(fd: int, parent: int, max_bytes: int) -> None:
    _die_with(parent)
    _silence()
    _limit_memory(_COPIES_OF_A_CLIP * max_bytes + _ROOM)
    with socket.socket(fileno=fd) as channel:
        videos = _Videos(max_bytes)
        try:
            messages.send(channel, {"ready": True})
            while True:
                _answer(channel, videos)
        except (EOFError, ConnectionError):
            return  # the pool is closed


class _Videos:
    """The video that the last clip was of stays open: the next one is mostly of the same."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._video: OpenedVideo | None = None

    def decode(self, path: VideoFile, request: ClipRequest, arrays: Mapping[str, int]) -> DecodedClip:
        if self._video is None or not self._video.is_of(path):
            self.close()
            self._video = OpenedVideo(path, max_bytes=self._max_bytes, arrays=arrays)
        return self._video.decode(request)

    def close(self) -> None:
        if self._video is not None:
            self._video.close()
        self._video = None


def _answer(channel: socket.socket, videos: _Videos) -> None:
    head, _ = messages.receive_head(channel)
    if "probe" in head:
        infos = [_or_error(path, lambda path: asdict(probe(path))) for path in head["probe"]]
        messages.send(channel, {"infos": infos})
        return
    timestamps = None if head["timestamps"] is None else tuple(head["timestamps"])
    request = ClipRequest(head["frames"], head["start_s"], timestamps, head["stride"], head["short"], head["end_s"])
    clip = _or_error(head["path"], lambda path: videos.decode(path, request, head["arrays"]))
    if isinstance(clip, DecodedClip):
        arrays = {name: getattr(clip, name).tolist() for name in ("timestamps", "mask", "nominal")}
        rows = {name: found.tolist() for name, found in clip.arrays.items()}
        answer = {"shape": clip.frames.shape, "decoder": clip.decoder, "arrays": rows, **arrays}
        messages.send(channel, answer, np.ascontiguousarray(clip.frames).reshape(-1).data)
    else:
        messages.send(channel, clip)


def _or_error(sent: Any, work: Callable[[VideoFile], Any]) -> Any:
    """What `work` returns for the file, or its error as a message."""
    path = from_message(sent)
    try:
        return work(path)
    except FlcacheError as error:
        return {"error": str(error), "reason": getattr(error, "reason", "unknown")}
    except MemoryError:
        return {"error": f"{path}: reading it takes more memory than a worker has", "reason": "too large"}
    except Exception as error:  # no exception of one video may end the run
        return {"error": f"{path}: {_described(error)}", "reason": "our own error"}


def _described(error: Exception) -> str:
    """Type, text, and the last line of flcache in the traceback."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_HERE)]
    place = f"{Path(ours[-1].filename).relative_to(_HERE)}:{ours[-1].lineno} in {ours[-1].name}"
    return f"{type(error).__name__}: {error} ({place})"


def _die_with(parent: int) -> None:
    """End with the parent, even while native code hangs and does not see the socket close (Linux only)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _limit_memory(room: int) -> None:
    """Limit the address space to what the libraries take and `room` bytes (Linux only)."""
    if sys.platform != "linux":
        return
    import resource

    import av  # noqa: F401

    decord_reader.missing()  # loads decord
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + room
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _silence() -> None:
    """Native libraries write to the terminal; their errors come back as answers."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
