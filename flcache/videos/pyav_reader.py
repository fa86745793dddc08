"""Frames by PyAV: exact, from the keyframe before the first wanted frame, and strict about damage.

FFmpeg's decoders conceal damage by default: they fill in what they cannot decode. Here the first error since the
keyframe ends the clip, because later pictures may be predicted from concealed ones. Damage that leaves a valid stream
(a changed byte in VP9 or HEVC mostly does) cannot be noticed by any decoder, only by a checksum of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.errors import DecodeError
from flcache.videos.container import open_video
from flcache.videos.frame_table import FrameTable
from flcache.videos.video_file import VideoFile


def read_frames(path: VideoFile, table: FrameTable, wanted: NDArray[np.int64], *, max_pixels: int) -> NDArray[np.uint8]:
    """Displayed frames `wanted` (increasing indices) of `path`: uint8 (len(wanted), h, w, 3) RGB, upright.

    Raises DecodeError naming the first frame that cannot be decoded.
    """
    keyframe = keyframe_before(table, int(wanted[0]))
    if keyframe is not None:
        try:
            return _read(path, table, wanted, keyframe, max_pixels)
        except DecodeError:
            pass  # after a seek, pictures may need earlier ones: try again from the start of the file
    return _read(path, table, wanted, None, max_pixels)


def keyframe_before(table: FrameTable, index: int) -> int | None:
    """The keyframe to seek to for frame `index`; None for the start of the file."""
    if not table.has_display_times:
        return None
    before = table.keyframes[table.keyframes <= table.pts[index]]
    return int(before[-1]) if len(before) > 1 else None


def _read(
    path: VideoFile, table: FrameTable, wanted: NDArray[np.int64], keyframe: int | None, max_pixels: int
) -> NDArray[np.uint8]:
    missing = {int(index) for index in wanted}
    frames = []
    for index, frame in _decode(path, table, keyframe, int(wanted[-1]), max_pixels):
        if index in missing:
            missing.remove(index)
            frames.append(upright(frame))
    if missing:
        raise _failure(path, table, min(missing), table.cut_off or "the decoder never returns it")
    return stacked(path, frames)


def upright(frame: Any) -> NDArray[np.uint8]:
    """The picture (h, w, 3) RGB as it is displayed."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)


def stacked(path: VideoFile, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(F, h, w, 3). Raises DecodeError where the pictures differ in size."""
    if len({frame.shape for frame in frames}) > 1:
        raise DecodeError(
            f"{path}: the picture size changes within the clip; cut the file where it does", reason="size changes"
        )
    return np.stack(frames)


def _decode(
    path: VideoFile, table: FrameTable, keyframe: int | None, last: int, max_pixels: int
) -> Iterator[tuple[int, Any]]:
    """Displayed frames with their index, from `keyframe` to `last` or a little further.

    Raises DecodeError at the first damage.
    """
    import av

    with open_video(path, max_pixels=max_pixels) as (container, stream):
        stream.codec_context.options |= {"err_detect": "explode"}
        following = 0  # index of the frame that comes out next
        if keyframe is not None:
            container.seek(keyframe, stream=stream)
            following = int(np.searchsorted(table.pts, keyframe))
        try:
            for packet in container.demux(stream):
                for frame in packet.decode():
                    index = index_of(table, frame, following)
                    if index is None:
                        continue
                    if packet.is_corrupt or frame.is_corrupt:
                        raise _failure(path, table, index, "its data are damaged")
                    yield index, frame
                    following = index + 1
                if following > last:
                    if packet.size:  # the empty last packet has already returned all pictures
                        _check_held_back(path, table, last, stream)
                    return
        except MemoryError:
            raise
        except av.FFmpegError as error:
            raise _failure(path, table, following, error.strerror) from None


def _check_held_back(path: VideoFile, table: FrameTable, last: int, stream: Any) -> None:
    """Raises DecodeError if a picture that is displayed after `last` is damaged: B-frames before it depend on it."""
    for frame in stream.codec_context.decode(None):
        if frame.is_corrupt:
            raise _failure(path, table, last, "it depends on a picture whose data are damaged")


def index_of(table: FrameTable, frame: Any, following: int) -> int | None:
    """Index of a decoded frame; None for pictures that are displayed before the keyframe of the seek."""
    if not table.has_display_times:
        return following
    index = int(np.searchsorted(table.pts, frame.pts))
    known = index < len(table) and table.pts[index] == frame.pts
    return index if known and index >= following else None


def _failure(path: VideoFile, table: FrameTable, index: int, words: str) -> DecodeError:
    last = len(table) - 1
    index = min(index, last)
    is_cut_off = table.cut_off is not None and (words == table.cut_off or index == last)
    return DecodeError(
        f"{path}: frame {index} at {table.seconds[index]:.3f} s cannot be decoded: {words}",
        reason="cut off" if is_cut_off else "undecodable frame",
    )
