"""Clips of one long video, one after the other, by PyAV: decoded in one pass instead of from a keyframe each.

What has been decoded before saves work and never changes a picture. Frames are handed out only if nothing was wrong
since the keyframe that decoding began at, and if every picture that the decoder had taken in by then came out whole.
Anything else is left to `pyav_reader.read_frames`, which starts anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flcache.errors import DecodeError
from flcache.videos.container import open_video
from flcache.videos.frame_table import FrameTable
from flcache.videos.pyav_reader import index_of, keyframe_before, read_frames, stacked, upright
from flcache.videos.video_file import VideoFile

_WORTH_PASSING = 25
"""Pictures before a keyframe that are decoded rather than jumped over: to open a long video again takes as long."""


def is_plain(table: FrameTable) -> bool:
    """Whether every packet of the file is one picture, displayed at its own time. Only such files are streamed."""
    return table.has_display_times and not table.has_leading_pictures and len(table) == table.num_packets


class _Picture(NamedTuple):
    number: int
    """Its index in the frame table."""
    frame: Any
    taken_in: int
    """The latest displayed picture that the decoder had taken in when this one came out."""


class _NotWhole(Exception):
    """A picture is missing or damaged."""


class FrameStream:
    """Frames of `path`, whose `table` is plain. Reading forward goes on where the last read ended."""

    def __init__(self, path: VideoFile, table: FrameTable, *, max_pixels: int) -> None:
        self._path, self._table, self._max_pixels = path, table, max_pixels
        self._open = ExitStack()
        self._pictures: Iterator[_Picture] | None = None
        self._ahead: deque[_Picture] = deque()
        """Pictures that came out after the last one that was wanted."""
        self._following = 0
        """Index of the picture that comes out next."""

    def read(self, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        """As `pyav_reader.read_frames`: the same frames and the same errors."""
        import av

        try:
            return self._whole(wanted.tolist())
        except MemoryError:
            self.close()
            raise
        except (_NotWhole, DecodeError, av.FFmpegError):
            self.close()
            return read_frames(self._path, self._table, wanted, max_pixels=self._max_pixels)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self._pictures = None
        self._ahead.clear()
        self._open.close()

    def _whole(self, wanted: list[int]) -> NDArray[np.uint8]:
        """The wanted frames. Raises _NotWhole if anything is wrong on the way to them."""
        self._start_before(wanted[0])
        missing, frames = set(wanted), []
        for picture in self._until(wanted[-1]):
            if picture.number in missing:
                missing.remove(picture.number)
                frames.append(upright(picture.frame))
        if missing:
            raise _NotWhole(min(missing))
        return stacked(self._path, frames)

    def _start_before(self, first: int) -> None:
        """Go on if that leads to picture `first` without a detour; else begin at its keyframe."""
        keyframe = keyframe_before(self._table, first)
        start = 0 if keyframe is None else int(np.searchsorted(self._table.pts, keyframe))
        reached = self._ahead[0].number if self._ahead else self._following
        if self._pictures is None or reached > first or start > self._following + _WORTH_PASSING:
            self.close()
            self._following = start
            self._pictures = self._decode(keyframe)

    def _until(self, last: int) -> Iterator[_Picture]:
        """Pictures up to `last`, in order; later ones that the decoder had taken in by then come out too, and wait."""
        needed = last
        waiting = [*self._ahead]
        self._ahead.clear()
        while waiting or self._following <= needed:
            picture = waiting.pop(0) if waiting else self._next()
            if picture.number == last:
                needed = picture.taken_in
            if picture.number > last:
                self._ahead.append(picture)
            else:
                yield picture

    def _next(self) -> _Picture:
        assert self._pictures is not None
        picture = next(self._pictures, None)
        if picture is None:
            raise _NotWhole("the file ends")
        self._following = picture.number + 1
        return picture

    def _decode(self, keyframe: int | None) -> Iterator[_Picture]:
        """Every picture from `keyframe` on. Raises _NotWhole at the first that is damaged or left out."""
        pts, taken_in = self._table.pts, -1
        container, stream = self._open.enter_context(open_video(self._path, max_pixels=self._max_pixels))
        stream.codec_context.options |= {"err_detect": "explode"}
        if keyframe is not None:
            container.seek(keyframe, stream=stream)
        for packet in container.demux(stream):
            if packet.size:
                taken_in = max(taken_in, int(np.searchsorted(pts, packet.pts)))
            for frame in packet.decode():
                index = index_of(self._table, frame, self._following)
                if index is None and keyframe is not None and frame.pts < keyframe:
                    continue  # the seek went to an earlier keyframe
                if index != self._following or packet.is_corrupt or frame.is_corrupt:
                    raise _NotWhole(index)
                yield _Picture(index, frame, taken_in)
