"""Opening a video file with PyAV: which stream is meant, what its header says, and why it cannot be opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flcache.errors import DecodeError

_MP4_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_MAGIC = (b"\x1aE\xdf\xa3", b"RIFF")


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


def probe(path: Path) -> VideoInfo:
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
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """The open container and its best video stream, which is the one that decord takes. Raises DecodeError."""
    import av

    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise _not_opened(path, error) from None
    with container:
        stream: Any = container.streams.best("video")
        if stream is None:
            raise DecodeError(f"{path}: there is no video stream in it", reason="no video stream")
        if not stream.codec_context.width:
            raise DecodeError(
                f"{path}: its {stream.codec_context.name} stream has no readable picture size",
                reason="undecodable frame",
            )
        stream.thread_count = 1  # parallelism is over clips, and damage is met in file order
        yield container, stream


def _not_opened(path: Path, error: Exception) -> DecodeError:
    if isinstance(error, FileNotFoundError):
        return DecodeError(f"{path}: no such file", reason="no file")
    if isinstance(error, OSError):
        return DecodeError(f"{path}: cannot be read: {error.strerror or error}", reason="not readable")
    if path.stat().st_size == 0:
        return DecodeError(f"{path}: the file is empty; fetch it again", reason="cut off")
    return DecodeError(
        f"{path}: cannot be opened: {_words_of_ffmpeg(path, error)}",
        reason="cut off" if _starts_as_a_video(path) else "not a video",
    )


def _starts_as_a_video(path: Path) -> bool:
    """Whether the first bytes are those of MP4 or MOV, Matroska or WebM, or AVI."""
    with path.open("rb") as stream:
        start = stream.read(8)
    return start[4:] in _MP4_ATOMS or start[:4] in _MAGIC


def _words_of_ffmpeg(path: Path, error: Exception) -> str:
    """What it logs ("moov atom not found") beside its error, which is mostly "invalid data"."""
    import av

    level, skips_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as logs, av.open(str(path)):
            pass
    except (av.FFmpegError, OSError):
        words = [message.strip() for _, _, message in logs if message.strip()]
        return "; ".join([*dict.fromkeys(words), getattr(error, "strerror", None) or str(error)])
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips_repeated)
    return str(error)
