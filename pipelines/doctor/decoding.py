"""A short video of each codec, decoded by each decoder.

The samples are `draw_frames(0, frames=8, size=64, fps=8)`, compressed by x264, x265, libvpx and SVT-AV1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flcache.errors import DecodeError
from flcache.videos import ClipRequest, decode_clip
from flcache.videos.decord_reader import missing

from .finding import Finding

SAMPLES = Path(__file__).parent / "samples"
CODECS = {"H.264": "h264.mp4", "HEVC": "hevc.mp4", "VP9": "vp9.mp4", "AV1": "av1.mp4"}
REQUEST = ClipRequest(8, 0.0, tuple(frame / 8 for frame in range(8)), None, "pad")
_PYAV = 'pip install --force-reinstall "av>=13"'


def findings() -> Iterator[Finding]:
    """One for each decoder and codec. What decord does not decode is left to PyAV, which must decode all."""
    why = missing()
    if why is not None:
        yield Finding("decord", "note", f"{why}; PyAV decodes everything, more slowly", 'pip install "decord>=0.6"')
    for codec in CODECS:
        if why is None:
            yield _by_decord(codec)
        yield _by_pyav(codec)


def _by_decord(codec: str) -> Finding:
    try:
        return Finding(f"decord, {codec}", "ok", _decoded(codec, "decord"))
    except DecodeError:
        return Finding(f"decord, {codec}", "ok", "left to PyAV")


def _by_pyav(codec: str) -> Finding:
    try:
        return Finding(f"PyAV, {codec}", "ok", _decoded(codec, "pyav"))
    except DecodeError as error:
        return Finding(f"PyAV, {codec}", "wrong", str(error), _PYAV, needed=True)


def _decoded(codec: str, decoder: str) -> str:
    frames = decode_clip(SAMPLES / CODECS[codec], REQUEST, decoder=decoder).frames
    return f"{len(frames)} frames of {frames.shape[2]} x {frames.shape[1]}"
