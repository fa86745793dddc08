"""When each frame of a file is on display: read from the packets, without decoding.

Both decoders find frames through this table, so that one timestamp means one frame whichever of them decodes. N is the
number of displayed frames; time 0 is the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.errors import DecodeError
from flcache.videos.container import declared_duration_s, open_video, shows_as_stored
from flcache.videos.options import ClipRule

TOLERANCE_S = 1e-3
"""A frame counts as on display this much early: Matroska rounds its times to milliseconds."""


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
class _Packet:
    pts: int
    duration: int
    is_keyframe: bool
    is_discard: bool


def read_frame_table(path: Path, *, max_pixels: int = ClipRule.max_bytes // 3) -> FrameTable:
    """The frame table of the best video stream of `path`. Raises DecodeError with the reason where there is none."""
    with open_video(path, max_pixels=max_pixels) as (container, stream):
        packets, timed, reading_error = _demux(container, stream)
        shown = [packet for packet in packets if not packet.is_discard]
        if not shown:
            raise DecodeError(
                f"{path}: its video stream holds no frame: {reading_error or 'no packet in it'}", reason="cut off"
            )
        order = sorted(range(len(packets)), key=lambda i: packets[i].pts)
        pts = np.array([packets[i].pts for i in order if not packets[i].is_discard], dtype=np.int64)
        ranks = np.array([rank for rank, i in enumerate(order) if not packets[i].is_discard], dtype=np.int64)
        seconds = (pts - pts[0]) * float(stream.time_base)
        end_s = _end_s(seconds, max(shown, key=lambda packet: packet.pts), stream)
        context = stream.codec_context
        return FrameTable(
            pts=pts,
            seconds=seconds,
            end_s=end_s,
            ranks=ranks,
            num_packets=len(packets),
            keyframes=np.array(sorted(packet.pts for packet in packets if packet.is_keyframe), dtype=np.int64),
            has_display_times=timed and len(np.unique(pts)) == len(pts) and _keeps_reordering(packets, context),
            has_leading_pictures=_has_leading_pictures(packets),
            container=container.format.name,
            codec=context.codec.canonical_name,
            pixel_format=context.pix_fmt or "",
            width=context.width,
            height=context.height,
            as_stored=shows_as_stored(path, container, stream),
            cut_off=reading_error or _missing_tail(container, stream, len(packets), end_s),
        )


def _demux(container: Any, stream: Any) -> tuple[list[_Packet], bool, str | None]:
    """The packets in file order, whether all carry display times, and the error that ended reading early."""
    import av

    packets: list[_Packet] = []
    timed = container.format.name != "avi"  # AVI has none, and what FFmpeg guesses is wrong where there are B-frames
    try:
        for packet in container.demux(stream):
            if packet.size == 0:  # the flush packet, or "show the last frame again" in AVI
                continue
            timed = timed and packet.pts is not None
            time = packet.pts if packet.pts is not None else packet.dts
            time = time if time is not None else len(packets)
            packets.append(_Packet(time, packet.duration or 0, packet.is_keyframe, packet.is_discard))
    except av.FFmpegError as error:
        return packets, timed, error.strerror
    return packets, timed, None


def _end_s(seconds: NDArray[np.float64], last: _Packet, stream: Any) -> float:
    """The last frame stays for as long as it says, and no shorter than the frames before it."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    usual_s = float(np.median(np.diff(seconds))) if len(seconds) > 1 else float(1 / rate)
    return float(seconds[-1]) + max(last.duration * float(stream.time_base), usual_s)


def _keeps_reordering(packets: list[_Packet], context: Any) -> bool:
    """Whether the times are those of display: packets are reordered where the codec reorders pictures."""
    return not context.has_b_frames or any(later.pts < packet.pts for packet, later in pairwise(packets))


def _has_leading_pictures(packets: list[_Packet]) -> bool:
    latest_keyframe = packets[0].pts
    for packet in packets:
        if packet.is_keyframe:
            latest_keyframe = packet.pts
        elif packet.pts < latest_keyframe:
            return True
    return False


def _missing_tail(container: Any, stream: Any, num_packets: int, end_s: float) -> str | None:
    """What is missing where the header promises more frames and more seconds than there are."""
    declared_s = declared_duration_s(container, stream)
    if declared_s is None or num_packets >= stream.frames > 0:
        return None
    tolerance_s = 2 * end_s / num_packets if stream.frames else 0.5  # Matroska declares the longest stream only
    if end_s >= declared_s - tolerance_s:
        return None
    return f"the file ends at {end_s:.2f} s of {declared_s:.2f} s; it was cut off: fetch it again"
