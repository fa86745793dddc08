"""A worker of a DecodePool: its process, what it is asked, and its end if it takes too long."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flcache.errors import DecodeError
from flcache.videos import messages
from flcache.videos.decoders import DecodedClip, VideoInfo
from flcache.videos.video_file import VideoFile, to_message

R = TypeVar("R")

_START_TIMEOUT_S = 120.0
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class WorkerLost(DecodeError):
    """A worker hung or died."""


class Worker:
    """One worker process and the socket to it."""

    def __init__(self, max_bytes: int) -> None:
        self.clips_done = 0
        self._max_bytes = max_bytes
        self._timed_out = False
        self._ready = False
        self._channel, theirs = socket.socketpair()
        search_path = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            arguments = (theirs.fileno(), os.getpid(), max_bytes)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flcache.videos.decode_worker", *map(str, arguments)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path)},  # finds this very package
                start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone
            )
        self.pid = self._process.pid

    def decode(self, head: dict[str, Any], timeout_s: float, let_in: Callable[[int], None]) -> DecodedClip:
        """The clip that `head` asks for. Raises DecodeError, which is WorkerLost if the process hangs or dies.

        `let_in` is called with its bytes before they are received.
        """
        answer, payload = self._ask(head, timeout_s)
        if "error" in answer:
            raise DecodeError(answer["error"], reason=answer["reason"])
        count = payload.num_bytes
        if count > self._max_bytes or count != math.prod(answer["shape"]):
            raise WorkerLost(f"decoder process sends {count} bytes for {answer['shape']}", reason="worker died")
        let_in(count)
        frames = self._within(timeout_s, payload.read)
        return DecodedClip(
            frames=frames.reshape(answer["shape"]),
            timestamps=np.array(answer["timestamps"], dtype=np.float64),
            mask=np.array(answer["mask"], dtype=np.bool_),
            decoder=answer["decoder"],
            nominal=np.array(answer["nominal"], dtype=np.float64),
            arrays={name: np.array(rows, dtype=np.float32) for name, rows in answer["arrays"].items()},
        )

    def probe(self, paths: Sequence[VideoFile], timeout_s: float) -> list[VideoInfo | DecodeError]:
        """The header of each file, in the order of `paths`. Raises WorkerLost if the process hangs or dies."""
        answer, _ = self._ask({"probe": [to_message(path) for path in paths]}, timeout_s)
        return [
            DecodeError(info["error"], reason=info["reason"]) if "error" in info else VideoInfo(**info)
            for info in answer["infos"]
        ]

    def _ask(self, head: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], messages.Payload]:
        """The answer to `head` and the bytes that come with it."""
        if not self._ready:
            self._ready = bool(self._within(_START_TIMEOUT_S, lambda: messages.receive_head(self._channel)))
        self.clips_done += 1

        def exchange() -> tuple[dict[str, Any], messages.Payload]:
            messages.send(self._channel, head)
            return messages.receive_head(self._channel)

        return self._within(timeout_s, exchange)

    def _within(self, timeout_s: float, talk: Callable[[], R]) -> R:
        """The result of `talk`. The worker is killed after `timeout_s`, even while it is sending."""
        deadline = threading.Timer(timeout_s, self._kill_late)
        deadline.start()
        try:
            return talk()
        except (EOFError, OSError):
            raise self._lost(timeout_s) from None
        finally:
            deadline.cancel()

    def _kill_late(self) -> None:
        self._timed_out = True
        self.kill()

    def _lost(self, timeout_s: float) -> WorkerLost:
        if self._timed_out:
            return WorkerLost(f"timed out after {timeout_s:g} s", reason="timed out")
        self.kill()  # it may have closed its socket and live on
        code = self._process.wait()
        how = f"died with signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        return WorkerLost(f"decoder process {how}", reason="worker died")

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._channel.close()
