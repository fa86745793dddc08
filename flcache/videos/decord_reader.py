"""Frames by decord, where its answer can be trusted.

decord 0.6 seeks by counting pictures and paints over damage without a word. It is asked only for files whose pictures
count plainly, and everything its FFmpeg logs while decoding is listened to: one error, and the answer is refused. Its
FFmpeg is an old one of its own, which takes the very same bytes for another container, or follows a playlist to other
files: it must see the container, one stream, its codec, the number of frames, their times and size that PyAV sees.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from traceback import clear_frames
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.errors import DecodeError
from flcache.videos.container import MATROSKA, MP4, magic
from flcache.videos.frame_table import TOLERANCE_S, FrameTable
from flcache.videos.video_file import VideoFile, address

_CODECS = ("h264", "mpeg4")  # hevc: wrong frames after a seek; vp9: other pixels when damaged; av1: no decoder
MOST_PICTURES = 1000
"""While decord waits for a picture it reads packets ahead, through the whole file, and decodes them until it is closed.
Of a long video that takes longer than the clip, and gigabytes while it is kept open. Clips of Kinetics are shorter."""
_AV_LOG_ERROR = 16
_AVIO_FLAG_READ = 1
_AVFORMAT_MAJOR = 58
_VIDEO = 0  # AVMEDIA_TYPE_VIDEO
_NO_STREAM = -int.from_bytes(b"\xf8STR", "little")  # AVERROR_STREAM_NOT_FOUND: not a video stream
_CONCEALING = b"concealing"  # "concealing 40 DC, 40 AC, 40 MV errors in P frame", logged at level info
_listening = threading.Lock()  # FFmpeg has one log callback a process


def obstacle(table: FrameTable) -> str | None:
    """Why decord is not to be asked for frames of this file; None where it is."""
    if table.container not in (MP4, MATROSKA):
        return "its FFmpeg may take this container for a list of other files"
    if table.codec not in _CODECS:
        return f"it does not decode {table.codec} reliably"
    if table.pixel_format != "yuv420p" or table.width % 2 or table.height % 2:
        return f"its FFmpeg converts {table.pixel_format} of {table.width}x{table.height} to other colours"
    if len(table) > MOST_PICTURES:
        return f"it reads the rest of the file with every clip, and {len(table)} pictures are too many for that"
    if not table.as_stored:
        return "its FFmpeg may turn or crop the pictures otherwise"
    if not table.has_display_times:
        return "the container keeps no display times"
    if table.has_doubtful_order:
        return "a damaged time may have changed the order that it counts pictures in"
    if table.has_leading_pictures or len(table) != table.num_packets:
        return "pictures that are never shown, or shown before their keyframe, upset its count"
    return missing()


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why decord cannot be used on this machine at all; None where it can."""
    if importlib.util.find_spec("decord") is None:
        return "it is not installed (there are wheels for Linux x86_64 and Windows)"
    return None if _ffmpeg("avutil") is not None else "this build of it gives no way to hear of damage"


def read_frames(path: VideoFile, table: FrameTable, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Displayed frames `wanted` (increasing indices) of `path`: uint8 (len(wanted), h, w, 3) RGB, upright.

    Raises DecodeError on the slightest sign of damage; PyAV then decides which frames are whole.
    """
    name = address(path)
    with _listening, _errors_heard() as errors:
        if not magic(path) == table.container == _container(name):
            raise _failure(path, "decord takes it for another container")
        if (codecs := _codecs(name, table.container)) != [table.codec]:
            raise _failure(path, f"decord sees streams of {codecs}, not one of {table.codec}")
        frames = _read(path, name, table, wanted)
    if errors:
        raise _failure(path, f"decord hides damage: {errors[0]}")
    return frames


def _read(path: VideoFile, name: str, table: FrameTable, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
    import decord

    ranks, reader = table.ranks[wanted], None
    try:
        # Any frame that decord recovered from its neighbour is too many: a fraction of 0 would mean "no limit".
        reader = decord.VideoReader(name, num_threads=1, fault_tol=1e-9)
        count, starts = len(reader), reader.get_frame_timestamp(table.ranks)[:, 0]  # (N,) float32
        if count != table.num_packets or np.abs(starts - starts[0] - table.seconds).max() > _tolerance_s(starts):
            raise _failure(path, f"decord counts {count} frames at other times than the file's {table.num_packets}")
        frames: NDArray[np.uint8] = reader.get_batch(ranks).asnumpy()
    except (MemoryError, DecodeError):
        raise
    except Exception as error:  # its errors have no common base; whatever it throws, PyAV decides
        clear_frames(error.__traceback__)  # they hold the reader
        raise _failure(path, f"decord: {next(iter(str(error).splitlines()), type(error).__name__)}") from None
    finally:
        reader = None  # its thread must end before the log's callback goes
    if frames.shape[1:3] != (table.height, table.width):
        raise _failure(path, f"decord returns pictures of {frames.shape[2]}x{frames.shape[1]}")
    return frames


def _tolerance_s(starts: NDArray[np.float32]) -> float:
    """How far times may differ by rounding alone: they are float32."""
    return TOLERANCE_S + 2 * float(np.spacing(np.abs(starts).max()))


def _container(name: str) -> str | None:
    """What decord's FFmpeg takes the file for; it opens nothing but that file."""
    library = _ffmpeg("avformat")
    if library is None:
        return None
    stream, container, text = ctypes.c_void_p(), ctypes.c_void_p(), os.fsencode(name)
    if library.avio_open(ctypes.byref(stream), text, _AVIO_FLAG_READ) < 0:
        return None
    unlimited = ctypes.c_uint(0)
    library.av_probe_input_buffer2(stream, ctypes.byref(container), text, None, unlimited, unlimited)
    library.avio_closep(ctypes.byref(stream))
    if not container:
        return None
    first_field: bytes = ctypes.cast(container, ctypes.POINTER(ctypes.c_char_p))[0]  # AVInputFormat.name
    return first_field.decode()


class _FormatContext(ctypes.Structure):
    """The start of AVFormatContext; the same in all of libavformat 58."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("av_class", "iformat", "oformat", "priv_data", "pb")),
        ("ctx_flags", ctypes.c_int),
        ("nb_streams", ctypes.c_uint),
    )


def _codecs(name: str, container: str) -> list[str]:
    """The decoder that decord's FFmpeg has for each video stream of the `container`; empty where it cannot be told."""
    library = _ffmpeg("avformat")
    if library is None or library.avformat_version() >> 16 != _AVFORMAT_MAJOR:
        return []
    library.av_find_input_format.restype = ctypes.c_void_p
    kind = ctypes.c_void_p(library.av_find_input_format(container.split(",")[0].encode()))
    context, codecs = ctypes.POINTER(_FormatContext)(), []
    if library.avformat_open_input(ctypes.byref(context), os.fsencode(name), kind, None) < 0:
        return []
    for stream in range(context.contents.nb_streams):
        decoder = ctypes.POINTER(ctypes.c_char_p)()  # AVCodec, whose first field is its name
        if library.av_find_best_stream(context, _VIDEO, stream, -1, ctypes.byref(decoder), 0) != _NO_STREAM:
            codecs.append(decoder[0].decode() if decoder else "unknown")
    library.avformat_close_input(ctypes.byref(context))
    return codecs


def _failure(path: VideoFile, words: str) -> DecodeError:
    return DecodeError(f"{path}: {words}", reason="undecodable frame")


@contextmanager
def _errors_heard() -> Iterator[list[str]]:
    """What decord's FFmpeg logs of errors and of painting over them, instead of its writing to the terminal."""
    log = _ffmpeg("avutil")
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


@lru_cache
def _ffmpeg(part: str) -> Any | None:
    """The library of FFmpeg that decord's wheel brings along, such as `avutil`; None where it cannot be found."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    package = Path(decord.__file__).parent
    pattern = f"{part}*.dll" if sys.platform == "win32" else f"lib{part}*.so*"
    for folder in (package.parent / "decord.libs", package):
        for library in sorted(folder.glob(pattern)):
            return ctypes.CDLL(str(library))
    return None
