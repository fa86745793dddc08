"""Clips as frames.

The frame for a timestamp is the one on display then; time 0 is the first displayed frame of the file. decord decodes,
or PyAV where decord is not exact or fails; both give the same bits. A frame that cannot be decoded is an error, never
replaced by a neighbour. F frames of h x w pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flcache.errors import ConfigError, DecodeError
from flcache.videos import decord_reader, pyav_reader
from flcache.videos.container import VideoInfo, probe
from flcache.videos.frame_arrays import read_rows, sampled
from flcache.videos.frame_stream import FrameStream, is_plain
from flcache.videos.frame_table import TOLERANCE_S, FrameTable, read_frame_table
from flcache.videos.options import ClipRule
from flcache.videos.video_file import VideoFile, carrier

__all__ = ["DECODERS", "ClipRequest", "DecodedClip", "OpenedVideo", "VideoInfo", "decode_clip", "probe"]

DECODERS = ("auto", "decord", "pyav")


@dataclass(frozen=True)
class ClipRequest:
    """One clip to decode: at `timestamps`, or every `stride`-th frame from the one on display at `start_s`."""

    frames: int
    start_s: float
    timestamps: tuple[float, ...] | None
    """F seconds from the first displayed frame; None with `stride`."""
    stride: int | None
    short: str
    """`pad` or `drop`, as in ClipRule."""
    end_s: float | None = None
    """The video counts as ended here, if its file does not end before."""

    def __post_init__(self) -> None:
        if (self.timestamps is None) == (self.stride is None):
            raise ConfigError("a clip has either timestamps or a stride")
        if self.timestamps is not None and len(self.timestamps) != self.frames:
            raise ConfigError(f"a clip of {self.frames} frames has {len(self.timestamps)} timestamps")


@dataclass(frozen=True)
class DecodedClip:
    """The frames of one clip, always as many as were asked for."""

    frames: NDArray[np.uint8]
    """(F, h, w, 3) RGB, upright."""
    timestamps: NDArray[np.float64]
    """(F,) seconds at which the decoded frames come on display."""
    mask: NDArray[np.bool_]
    """(F,) False where the video had ended, and its last frame is repeated."""
    decoder: str
    """`decord` or `pyav`."""
    nominal: NDArray[np.float64]
    """(F,) seconds that were sampled: the requested ones, or multiples of the stride at the file's average rate. Evenly
    spaced even where the picture freezes or the video has ended."""
    arrays: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """(F, A) by name, what the video's `.npz` has for these frames: see `frame_arrays`."""

    def sampled(self, *, nominal: bool) -> NDArray[np.float64]:
        """(F,) the `nominal` seconds, or those at which the frames come on display."""
        return self.nominal if nominal else self.timestamps


def decode_clip(
    path: VideoFile, request: ClipRequest, *, decoder: str = "auto", max_bytes: int = ClipRule.max_bytes
) -> DecodedClip:
    """The clip `request` of the video at `path`. Raises DecodeError with the reason, naming the frame that fails.

    A clip fails if it has more than `max_bytes` by the header's size, or if a picture turns out larger than that.
    """
    with OpenedVideo(path, decoder=decoder, max_bytes=max_bytes) as video:
        return video.decode(request)


class OpenedVideo:
    """Clips of the video at `path`, cheapest one after the other: its frame table is read once, and a long video is
    decoded in one pass. What was decoded before changes neither frames nor errors. A context manager.

    Arguments and errors as of `decode_clip`. Its clips come with `arrays`, numbers a row by name.
    """

    def __init__(
        self,
        path: VideoFile,
        *,
        decoder: str = "auto",
        max_bytes: int = ClipRule.max_bytes,
        arrays: Mapping[str, int] | None = None,
    ) -> None:
        if decoder not in DECODERS:
            raise ConfigError(f"decoder {decoder!r} is unknown; choose one of {', '.join(DECODERS)}")
        self._path, self._decoder, self._max_bytes = path, decoder, max_bytes
        self._widths = arrays or {}
        self._rows: dict[str, NDArray[np.float32]] | None = None
        self._state = _state(path)
        self._table: FrameTable | None = None
        self._max_pixels = 0
        self._comes_again = False
        """Whether PyAV has decoded a clip of it before."""
        self._stream: FrameStream | None = None

    def __enter__(self) -> OpenedVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def is_of(self, path: VideoFile) -> bool:
        """Whether this is `path`, and the file there is unchanged."""
        return path == self._path and self._state is not None and self._state == _state(path)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._table = self._stream = None

    def decode(self, request: ClipRequest) -> DecodedClip:
        path, max_pixels = self._path, self._max_bytes // (3 * request.frames)
        table = self._table_for(max_pixels)
        if table.width * table.height > max_pixels:
            words = f"is more than clip.max_bytes={self._max_bytes}; raise that, or scale"
            raise _too_large(path, request, table, words)
        indices, mask, nominal = _choose_frames(path, table, request)
        if self._rows is None:
            self._rows = read_rows(path, self._widths, len(table))
        wanted, places = np.unique(indices, return_inverse=True)
        try:
            frames, used = self._read(table, wanted)
            if len(wanted) < len(indices):
                frames = frames[places]
        except (MemoryError, BlockingIOError):  # EAGAIN: no memory for the stack of a thread that converts colours
            raise _too_large(path, request, table, "do not fit in memory; lower clip.frames, or scale") from None
        arrays = sampled(self._rows, indices)
        return DecodedClip(frames, table.seconds[indices], mask, used, nominal, arrays)

    def _table_for(self, max_pixels: int) -> FrameTable:
        if self._table is None or self._max_pixels != max_pixels:
            self.close()
            self._table, self._max_pixels = read_frame_table(self._path, max_pixels=max_pixels), max_pixels
        return self._table

    def _read(self, table: FrameTable, wanted: NDArray[np.int64]) -> tuple[NDArray[np.uint8], str]:
        """Frames `wanted` and the decoder that gave them."""
        obstacle = "another decoder was asked for" if self._decoder == "pyav" else decord_reader.obstacle(table)
        if obstacle is None:
            try:
                return decord_reader.read_frames(self._path, table, wanted), "decord"
            except DecodeError:
                if self._decoder == "decord":
                    raise
        elif self._decoder == "decord":
            raise DecodeError(
                f"{self._path}: decord is not to be trusted with this file: {obstacle}; use auto or pyav",
                reason="undecodable frame",
            )
        return self._read_by_pyav(table, wanted), "pyav"

    def _read_by_pyav(self, table: FrameTable, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        """In one pass, of short videos from the second clip on: a pass decodes more than a single clip needs."""
        passes = self._comes_again or len(table) > decord_reader.MOST_PICTURES
        if not passes or not is_plain(table):
            frames = pyav_reader.read_frames(self._path, table, wanted, max_pixels=self._max_pixels)
            self._comes_again = True
            return frames
        if self._stream is None:
            self._stream = FrameStream(self._path, table, max_pixels=self._max_pixels)
        return self._stream.read(wanted)


def _state(path: VideoFile) -> tuple[int, ...] | None:
    """What changes when the file does; None where there is none."""
    with suppress(OSError):
        status = carrier(path).stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    return None


def _too_large(path: VideoFile, request: ClipRequest, table: FrameTable, words: str) -> DecodeError:
    what = f"{request.frames} frames of {table.width}x{table.height}"
    return DecodeError(f"{path}: {what} {words} the video down", reason="too large")


def _choose_frames(
    path: VideoFile, table: FrameTable, request: ClipRequest
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Index of each frame of the clip, whether the video has it, and its nominal seconds; (F,) each."""
    end_s, last = _end(table, request)
    if request.timestamps is not None:
        nominal = np.array(request.timestamps, dtype=np.float64)
        indices, real = table.on_display(nominal), nominal < end_s
    else:
        assert request.stride is not None
        numbers, apart_s = np.arange(request.frames, dtype=np.int64), request.stride * table.end_s / len(table)
        nominal = request.start_s + apart_s * numbers.astype(np.float64)
        indices = table.on_display(np.array([request.start_s])) + numbers * request.stride
        real = (indices <= last) & (request.start_s < end_s)
    if not real.all():
        _check_short(path, table, request, real)
    return np.minimum(indices, last), real, nominal


def _end(table: FrameTable, request: ClipRequest) -> tuple[float, int]:
    """When the video ends, or its segment, and the index of the last frame before that."""
    if request.end_s is None or request.end_s >= table.end_s:
        return table.end_s, len(table) - 1
    return request.end_s, int(table.on_display(np.array([request.end_s - 2 * TOLERANCE_S]))[0])


def _check_short(path: VideoFile, table: FrameTable, request: ClipRequest, real: NDArray[np.bool_]) -> None:
    """Raises DecodeError for an incomplete clip that must not be padded."""
    if table.cut_off:
        raise DecodeError(
            f"{path}: no frame after {table.seconds[-1]:.3f} s (frame {len(table) - 1}): {table.cut_off}",
            reason="cut off",
        )
    if not real.any():
        raise DecodeError(
            f"{path}: the clip starts at {request.start_s:.3f} s, the video ends at {table.end_s:.3f} s",
            reason="too short",
        )
    if request.short == "drop":
        raise DecodeError(
            f"{path}: shorter than the clip: {int(real.sum())} of {request.frames} frames before its end at "
            f"{table.end_s:.3f} s, and clip.short is drop",
            reason="too short",
        )
