"""When each frame of a file is on display: read from the packets, without decoding.

Both decoders find frames through this table, so that one timestamp means one frame whichever of them decodes. N is the
number of displayed frames; time 0 is the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.errors import DecodeError
from flcache.videos.container import declared_duration_s, open_video, shows_as_stored
from flcache.videos.options import ClipRule
from flcache.videos.video_file import VideoFile

TOLERANCE_S = 1e-3
"""A frame counts as on display this much early: Matroska rounds its times to milliseconds."""

_LEAST_APART = 0.75
"""Of the usual distance between two pictures."""


@dataclass(frozen=True)
class FrameTable:
    """The displayed frames of one video stream, in display order."""

    pts: NDArray[np.int64]
    """(N,) presentation times in units of the stream, strictly increasing."""
    seconds: NDArray[np.float64]
    """(N,) the same, from the first displayed frame."""
    end_s: float
    """When the last frame stops being displayed."""
    ranks: NDArray[np.int64]
    """(N,) place of each frame among all coded pictures; discarded ones are counted too."""
    num_packets: int
    keyframes: NDArray[np.int64]
    """Presentation times of the pictures that decoding can start at, increasing."""
    has_display_times: bool
    """False where the container keeps decoding order only, as AVI does, or MP4 that lost its box `ctts`: then the k-th
    frame decoded is the k-th displayed."""
    has_doubtful_order: bool
    """Pictures are stored in another order than displayed, and two come on display in much quicker succession than the
    others: a damaged time may have moved one of them before another."""
    has_leading_pictures: bool
    """Open groups of pictures: some come after a keyframe in the file and before it on display."""
    container: str
    """FFmpeg's name of it."""
    codec: str
    pixel_format: str
    width: int
    height: int
    as_stored: bool
    """Whether the container plainly neither turns nor crops the pictures."""
    cut_off: str | None
    """Why frames are known to be missing at the end, where the header promises more than the file holds."""

    def __len__(self) -> int:
        return len(self.pts)

    def on_display(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Index of the frame on display at each time; the first one before 0, the last one after the end."""
        shown = np.searchsorted(self.seconds, seconds + TOLERANCE_S, side="right") - 1
        return np.maximum(shown, 0).astype(np.int64)


@dataclass(frozen=True)
class _Packets:
    """The packets of a stream in file order, as columns."""

    pts: NDArray[np.int64]
    """Presentation times, or the nearest to them that the container keeps."""
    durations: list[int]
    is_keyframe: NDArray[np.bool_]
    is_discard: NDArray[np.bool_]
    timed: bool
    """Whether all carry display times."""
    error: str | None
    """What ended reading early."""

    def __len__(self) -> int:
        return len(self.pts)


def read_frame_table(path: VideoFile, *, max_pixels: int = ClipRule.max_bytes // 3) -> FrameTable:
    """The frame table of the best video stream of `path`. Raises DecodeError with the reason where there is none."""
    with open_video(path, max_pixels=max_pixels) as (container, stream):
        packets = _demux(container, stream)
        if packets.is_discard.all():
            raise DecodeError(
                f"{path}: its video stream holds no frame: {packets.error or 'no packet in it'}", reason="cut off"
            )
        order = np.argsort(packets.pts, kind="stable")
        ranks = np.flatnonzero(~packets.is_discard[order])
        shown = order[ranks]
        pts = packets.pts[shown]
        seconds = (pts - pts[0]) * float(stream.time_base)
        last = int(shown[np.searchsorted(pts, pts[-1])])
        end_s = _end_s(seconds, packets.durations[last], stream)
        context = stream.codec_context
        return FrameTable(
            pts=pts,
            seconds=seconds,
            end_s=end_s,
            ranks=ranks,
            num_packets=len(packets),
            keyframes=np.sort(packets.pts[packets.is_keyframe]),
            has_display_times=packets.timed and len(np.unique(pts)) == len(pts) and _keeps_reordering(packets, context),
            has_doubtful_order=_has_doubtful_order(packets, pts),
            has_leading_pictures=_has_leading_pictures(packets),
            container=container.format.name,
            codec=context.codec.canonical_name,
            pixel_format=context.pix_fmt or "",
            width=context.width,
            height=context.height,
            as_stored=shows_as_stored(path, container, stream),
            cut_off=packets.error or _missing_tail(container, stream, len(packets), end_s),
        )


def _demux(container: Any, stream: Any) -> _Packets:
    import av

    times: list[int] = []
    durations: list[int] = []
    flags: list[tuple[bool, bool]] = []
    timed = container.format.name != "avi"  # AVI has none, and what FFmpeg guesses is wrong where there are B-frames
    error: str | None = None
    try:
        for packet in container.demux(stream):
            if packet.size == 0:  # the flush packet, or "show the last frame again" in AVI
                continue
            time = packet.pts
            if time is None:
                timed = False
                time = packet.dts if packet.dts is not None else len(times)
            times.append(time)
            durations.append(packet.duration or 0)
            flags.append((packet.is_keyframe, packet.is_discard))
    except av.FFmpegError as failure:
        error = failure.strerror
    is_keyframe, is_discard = np.array(flags, dtype=np.bool_).reshape(-1, 2).T
    return _Packets(np.array(times, dtype=np.int64), durations, is_keyframe, is_discard, timed, error)


def _end_s(seconds: NDArray[np.float64], last_duration: int, stream: Any) -> float:
    """The last frame stays for as long as it says, and no shorter than the frames before it."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    usual_s = float(np.median(np.diff(seconds))) if len(seconds) > 1 else float(1 / rate)
    return float(seconds[-1]) + max(last_duration * float(stream.time_base), usual_s)


def _keeps_reordering(packets: _Packets, context: Any) -> bool:
    """Whether the times are those of display: packets are reordered where the codec reorders pictures."""
    return not context.has_b_frames or bool((np.diff(packets.pts) < 0).any())


def _has_doubtful_order(packets: _Packets, pts: NDArray[np.int64]) -> bool:
    """A picture that is moved between two others leaves at most half of their distance."""
    apart, reordered = np.diff(pts), (np.diff(packets.pts) < 0).any()
    return bool(reordered and len(apart) and apart.min() < _LEAST_APART * np.median(apart))


def _has_leading_pictures(packets: _Packets) -> bool:
    starts = packets.is_keyframe.copy()
    starts[0] = True
    latest_keyframe = packets.pts[np.maximum.accumulate(np.where(starts, np.arange(len(packets)), 0))]
    return bool((packets.pts < latest_keyframe).any())


def _missing_tail(container: Any, stream: Any, num_packets: int, end_s: float) -> str | None:
    """What is missing where the header promises more frames and more seconds than there are."""
    declared_s = declared_duration_s(container, stream)
    if declared_s is None or num_packets >= stream.frames > 0:
        return None
    tolerance_s = 2 * end_s / num_packets if stream.frames else 0.5  # Matroska declares the longest stream only
    if end_s >= declared_s - tolerance_s:
        return None
    return f"the file ends at {end_s:.2f} s of {declared_s:.2f} s; it was cut off: fetch it again"
