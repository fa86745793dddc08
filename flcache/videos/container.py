"""Opening a video file with PyAV: which stream is meant, what its header says, and why it cannot be opened.

A file may come from a stranger. Only regular files are opened, by absolute path and by the protocol `file` alone, for a
member of a tar through `subfile`, and only as one of `CONTAINERS`: none of these names other files or addresses, as
playlists do.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from flcache.errors import DecodeError
from flcache.videos.options import ClipRule
from flcache.videos.video_file import VideoFile, address, carrier, open_bytes, size_of

MP4, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
CONTAINERS = (MP4, MATROSKA, "avi", "mpegts", "mpeg", "flv", "asf")
"""Every container that is read, by FFmpeg's name."""

_MP4_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_MATROSKA_MAGIC = b"\x1aE\xdf\xa3"
_MATRIX_AT = {b"mvhd": (36, 48), b"tkhd": (40, 52)}
"""Where the display matrix lies after the name of an MP4 box of version 0 and 1 (ISO/IEC 14496-12, 8.2.2 and 8.3.2)."""
_UPRIGHT = struct.pack(">9i", 2**16, 0, 0, 0, 2**16, 0, 0, 0, 2**30)
_TRACKS, _CLUSTER = b"\x16T\xaek", b"\x1fC\xb6u"  # elements of Matroska (RFC 9559)
_TURN_OR_CROP = (b"\x76\x70", b"\x54\xaa", b"\x54\xbb", b"\x54\xcc", b"\x54\xdd")  # Projection, PixelCrop...
_HEADER_BYTES = 2**24
"""A longer header is not searched."""


@dataclass(frozen=True)
class VideoInfo:
    """What the header of a file says; None where it does not say."""

    duration_s: float | None
    num_frames: int | None
    fps: float | None
    width: int
    """As stored, before rotation."""
    height: int
    codec: str


def probe(path: VideoFile) -> VideoInfo:
    """The header of the best video stream of `path`; cheap, nothing is decoded. Raises DecodeError with the reason."""
    with open_video(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        return VideoInfo(
            duration_s=declared_duration_s(container, stream),
            num_frames=stream.frames or None,
            fps=float(rate) if rate else None,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            codec=stream.codec_context.codec.canonical_name,
        )


def declared_duration_s(container: Any, stream: Any) -> float | None:
    """Seconds by the header: the shorter of stream and container, since either may count what is never displayed."""
    known = []
    if stream.duration is not None and stream.time_base is not None:
        known.append(float(stream.duration * stream.time_base))
    if container.duration is not None:
        known.append(container.duration / 1_000_000)  # AV_TIME_BASE
    return min(known, default=None)


@contextmanager
def open_video(path: VideoFile, *, max_pixels: int = ClipRule.max_bytes // 3) -> Iterator[tuple[Any, Any]]:
    """The open container and its best video stream, which is the one that decord takes. Raises DecodeError.

    No decoder makes a picture of more than `max_pixels`.
    """
    import av

    try:
        _check_regular(path)
        container = _open(path, max_pixels)
    except (av.FFmpegError, OSError) as error:
        raise _not_opened(path, error) from None
    with container:
        stream: Any = container.streams.best("video")
        if stream is None:
            raise DecodeError(f"{path}: there is no video stream in it", reason="no video stream")
        if stream.codec_context is None:
            raise DecodeError(f"{path}: FFmpeg has no decoder for its video stream", reason="undecodable frame")
        if not stream.codec_context.width:
            raise _without_size(path, stream, max_pixels)
        stream.thread_count = 1  # parallelism is over clips, and damage is met in file order
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        yield container, stream


def _open(path: VideoFile, max_pixels: int) -> Any:
    import av

    limits = {
        "protocol_whitelist": "file,subfile",
        "format_whitelist": ",".join(CONTAINERS),
        "max_pixels": str(max_pixels),
    }
    # A title that is no UTF-8 ends PyAV before 19; later ones take any, and do not know the argument.
    lenient: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(address(path, "file:"), options=limits, **lenient)


def _check_regular(path: VideoFile) -> None:
    """Raise where `path` is a pipe, a device or a folder: opening those may wait for ever."""
    mode = carrier(path).stat().st_mode
    if stat.S_ISREG(mode):
        return
    what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
    raise DecodeError(f"{path}: this is {what}, not a file; remove it from the list of videos", reason="not readable")


def _not_opened(path: VideoFile, error: Exception) -> DecodeError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return DecodeError(f"{path}: no such file", reason="no file")
    if isinstance(error, OSError):
        return DecodeError(f"{path}: cannot be read: {error.strerror or error}", reason="not readable")
    if size_of(path) == 0:
        return DecodeError(f"{path}: the file is empty; fetch it again", reason="cut off")
    return DecodeError(
        f"{path}: cannot be opened: {_words_of_ffmpeg(path, error)}",
        reason="cut off" if _starts_as_a_video(path) else "not a video",
    )


def _starts_as_a_video(path: VideoFile) -> bool:
    """Whether the first bytes are those of MP4 or MOV, Matroska or WebM, or AVI."""
    return magic(path) is not None


def magic(path: VideoFile) -> str | None:
    """The container by the first bytes alone: MP4 or MOV, Matroska or WebM, AVI; None for any other."""
    with open_bytes(path) as stream:
        start = stream.read(8)
    if start[4:] in _MP4_ATOMS:
        return MP4
    return MATROSKA if start[:4] == _MATROSKA_MAGIC else "avi" if start[:4] == b"RIFF" else None


def shows_as_stored(path: VideoFile, container: Any, stream: Any) -> bool:
    """Whether the container plainly neither turns nor crops the pictures.

    Versions of FFmpeg disagree about degenerate matrices, rotation by tags and cropping: False wherever one may act.
    """
    if any(key.lower() == "rotate" for key in stream.metadata):
        return False
    with open_bytes(path) as file:
        if container.format.name == MATROSKA:
            _, found, tracks = file.read(2**16).partition(_CLUSTER)[0].partition(_TRACKS)
            return bool(found) and not any(element in tracks for element in _TURN_OR_CROP)
        header = _movie_header(file)
    boxes = [(box[0], box.end()) for box in re.finditer(rb"mvhd|tkhd", header)]
    starts = [end + _MATRIX_AT[name][header[end : end + 1] == b"\x01"] for name, end in boxes]
    upright = all(header[start : start + len(_UPRIGHT)] == _UPRIGHT for start in starts)
    return upright and len(boxes) > 1 and b"clap" not in header


def _movie_header(file: BinaryIO) -> bytes:
    """The box `moov` of an MP4; empty where it is too long, or not among the first boxes of the file."""
    for _ in range(1000):
        start = file.read(16)
        size, name = int.from_bytes(start[:4], "big"), start[4:8]
        if size == 1:
            size = int.from_bytes(start[8:], "big")
        if name == b"moov" and 16 <= size <= _HEADER_BYTES:
            return start + file.read(size - 16)
        if size < 8:  # 0 is "to the end of the file"; anything else is damage
            break
        file.seek(size - len(start), os.SEEK_CUR)
    return b""


def _without_size(path: VideoFile, stream: Any, max_pixels: int) -> DecodeError:
    """The error for a stream whose size FFmpeg leaves open: it could not read it, or would not go above the limit."""
    if "exceeds specified max pixel count" in _logged(path, max_pixels):
        words = f"its pictures have more than {max_pixels} pixels, and clip.max_bytes no room for them; scale it down"
        return DecodeError(f"{path}: {words}", reason="too large")
    words = f"its {stream.codec_context.name} stream has no readable picture size"
    return DecodeError(f"{path}: {words}", reason="undecodable frame")


def _words_of_ffmpeg(path: VideoFile, error: Exception) -> str:
    """What it logs ("moov atom not found") beside its error, which is mostly "invalid data"."""
    words = _logged(path, ClipRule.max_bytes // 3)
    return "; ".join([*([words] if words else []), getattr(error, "strerror", None) or str(error)])


def _logged(path: VideoFile, max_pixels: int) -> str:
    """The errors that FFmpeg logs while it opens the file."""
    import av

    level, skips_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as logs, suppress(av.FFmpegError, OSError):
            _open(path, max_pixels).close()
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips_repeated)
    return "; ".join(dict.fromkeys(message.strip() for _, _, message in logs if message.strip()))
