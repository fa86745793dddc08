"""Frames by decord, where its answer can be trusted.

decord 0.6 seeks by counting pictures and paints over damage without a word. It is asked only for files whose pictures
count plainly, and everything its FFmpeg logs while decoding is listened to: one error, and the answer is refused.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.errors import DecodeError
from flcache.videos.frame_table import FrameTable

_CODECS = ("h264", "mpeg4", "vp9")  # hevc: wrong frames after a seek; av1: no decoder in its FFmpeg
_AV_LOG_ERROR = 16
_CONCEALING = b"concealing"  # "concealing 40 DC, 40 AC, 40 MV errors in P frame", logged at level info
_listening = threading.Lock()  # FFmpeg has one log callback a process


def obstacle(table: FrameTable) -> str | None:
    """Why decord is not to be asked for frames of this file; None where it is."""
    if table.codec not in _CODECS:
        return f"it does not decode {table.codec} reliably"
    if table.pixel_format != "yuv420p" or table.width % 2 or table.height % 2:
        return f"its FFmpeg converts {table.pixel_format} of {table.width}x{table.height} to other colours"
    if not table.has_display_times:
        return "the container keeps no display times"
    if table.has_leading_pictures or len(table) != table.num_packets:
        return "pictures that are never shown, or shown before their keyframe, upset its count"
    return missing()


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why decord cannot be used on this machine at all; None where it can."""
    if importlib.util.find_spec("decord") is None:
        return "it is not installed (there are wheels for Linux x86_64 and Windows)"
    return None if _ffmpeg_log() is not None else "this build of it gives no way to hear of damage"


def read_frames(path: Path, table: FrameTable, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Displayed frames `wanted` (increasing indices) of `path`: uint8 (len(wanted), h, w, 3) RGB, upright.

    Raises DecodeError on the slightest sign of damage; PyAV then decides which frames are whole.
    """
    import decord

    with _listening, _errors_heard() as errors:
        try:
            # Any frame that decord recovered from its neighbour is too many: a fraction of 0 would mean "no limit".
            reader = decord.VideoReader(str(path), num_threads=1, fault_tol=1e-9)
            if len(reader) != table.num_packets:
                raise _failure(path, f"decord counts {len(reader)} frames, the file has {table.num_packets}")
            frames: NDArray[np.uint8] = reader.get_batch(table.ranks[wanted]).asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise _failure(path, f"decord: {str(error).splitlines()[0]}") from None
        finally:
            reader = None  # its thread must end before the callback goes
    if errors:
        raise _failure(path, f"decord hides damage: {errors[0]}")
    return frames


def _failure(path: Path, words: str) -> DecodeError:
    return DecodeError(f"{path}: {words}", reason="undecodable frame")


@contextmanager
def _errors_heard() -> Iterator[list[str]]:
    """What decord's FFmpeg logs of errors and of painting over them, instead of its writing to the terminal."""
    log = _ffmpeg_log()
    assert log is not None
    errors: list[str] = []

    def hear(_context: int | None, level: int, message: bytes, _arguments: int | None) -> None:
        if level <= _AV_LOG_ERROR or message.startswith(_CONCEALING):
            errors.append(message.decode(errors="replace").strip())

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(hear)
    log.av_log_set_callback(callback)
    try:
        yield errors
    finally:
        log.av_log_set_callback(log.av_log_default_callback)


@lru_cache(maxsize=1)
def _ffmpeg_log() -> Any | None:
    """The libavutil that decord's wheel brings along; None where it cannot be found."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    package = Path(decord.__file__).parent
    pattern = "avutil*.dll" if sys.platform == "win32" else "libavutil*.so*"
    for folder in (package.parent / "decord.libs", package):
        for library in sorted(folder.glob(pattern)):
            return ctypes.CDLL(str(library))
    return None
