"""Videos that the tests write themselves with PyAV, so that no property rests on files from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

WriteVideo = Callable[..., Path]


def moving_pictures(frames: int, height: int, width: int) -> np.ndarray:
    """(F, h, w, 3): smooth, and different in every frame."""
    time, y, x = np.mgrid[0:frames, 0:height, 0:width].astype(np.float32)
    channels = [128 + 100 * np.sin(x / (9 + c) + time / 3 + c) * np.cos(y / 11 - time / (4 + c)) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


@pytest.fixture
def write_video(tmp_path: Path) -> WriteVideo:
    """Writes an H.264 file: `times` in units of 1/600 s (default: 30 frames at 25 per second)."""

    def write(
        name: str = "video.mp4",
        *,
        times: Sequence[int] = tuple(range(0, 720, 24)),
        size: tuple[int, int] = (96, 128),
        codec: str = "libx264",
        options: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
            stream: Any = container.add_stream(codec, rate=25, options=options or {"g": "12", "crf": "12"})
            stream.height, stream.width = size
            stream.pix_fmt, stream.thread_count = "yuv420p", 1
            stream.codec_context.time_base = Fraction(1, 600)
            for picture, pts in zip(moving_pictures(len(times), *size), times, strict=True):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = pts, Fraction(1, 600)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write
