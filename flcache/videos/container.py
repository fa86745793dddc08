"""Opening a video file with PyAV: which stream is meant, what its header says, and why it cannot be opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flcache.errors import DecodeError


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
        raise DecodeError(f"{path}: cannot be opened: {_why_not_opened(path, error)}") from None
    with container:
        stream: Any = container.streams.best("video")
        if stream is None:
            raise DecodeError(f"{path}: there is no video stream in it")
        if not stream.codec_context.width:
            raise DecodeError(f"{path}: its {stream.codec_context.name} stream has no readable picture size")
        stream.thread_count = 1  # parallelism is over clips, and damage is met in file order
        yield container, stream


def _why_not_opened(path: Path, error: Exception) -> str:
    """FFmpeg's own words ("moov atom not found") where it has any beyond "invalid data"."""
    import av

    if not path.is_file():
        return "no such file"
    if path.stat().st_size == 0:
        return "the file is empty"
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
