"""Clips of one video decoded one after the other are, bit for bit, the clips decoded alone, errors included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from test_decoders import VARIANTS

from flcache.errors import DecodeError
from flcache.videos import ClipRequest, decode_clip, decord_reader
from flcache.videos.decoders import OpenedVideo
from flcache.videos.frame_stream import FrameStream, is_plain
from flcache.videos.frame_table import read_frame_table

MAX_PIXELS = 10**8


def orders(end_s: float, count: int = 7, frames: int = 5) -> dict[str, list[ClipRequest]]:
    """Clips one after the other, overlapping, with gaps, backwards and anywhere."""
    starts = np.linspace(0, end_s * 0.9, count)
    share = end_s / count
    draws = np.random.default_rng(0).uniform(0, end_s * 1.05, count)
    return {
        "tiled": [_clip(start, share / frames, frames) for start in np.arange(count) * share],
        "overlapping": [_clip(start, 2 * share / frames, frames) for start in starts],
        "gaps": [_clip(start, share / frames / 9, frames) for start in starts],
        "backwards": [_clip(start, share / frames, frames) for start in starts[::-1]],
        "anywhere": [_clip(start, share / frames, frames) for start in draws],
    }


def _clip(start_s: float, apart_s: float, frames: int) -> ClipRequest:
    times = tuple(float(start_s + apart_s * i) for i in range(frames))
    return ClipRequest(frames, times[0], times, None, "pad")


def outcomes(read: Callable[[ClipRequest], object], requests: Sequence[ClipRequest]) -> list[object]:
    found: list[object] = []
    for request in requests:
        try:
            found.append(read(request))
        except DecodeError as error:
            found.append((str(error), error.reason))
    return found


def check(path: Path, decoder: str = "auto", **clips: int) -> int:
    """How many clips were whole."""
    try:
        end_s = read_frame_table(path).end_s
    except DecodeError:
        end_s = 1.0
    whole = 0
    for name, requests in orders(end_s, **clips).items():
        alone = outcomes(lambda request: decode_clip(path, request, decoder=decoder), requests)
        with OpenedVideo(path, decoder=decoder) as video:
            together = outcomes(video.decode, requests)
        for one, other in zip(alone, together, strict=True):
            if isinstance(one, tuple) or isinstance(other, tuple):
                assert one == other, (path, name)
                continue
            assert np.array_equal(one.frames, other.frames), (path, name)
            # decord decodes ahead in a thread: whether it meets damage behind the clip in time is chance
            assert one.decoder == other.decoder or path.parent.name == "bad", (path, name)
            assert np.array_equal(one.timestamps, other.timestamps) and np.array_equal(one.mask, other.mask)
            whole += 1
    return whole


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_file(variant: str, decoder: str, write_video: Callable[..., Path]) -> None:
    assert check(write_video(**VARIANTS[variant]), decoder) >= 28


def test_damage_is_met_by_the_same_clips(write_video: Callable[..., Path]) -> None:
    """Bytes overwritten at many places: a clip before them must not be spared, nor one after them blamed."""
    path = write_video(times=tuple(range(0, 2400, 24)), size=(48, 64), options={"g": "25", "bf": "3"})
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    failed = 0
    for place in np.linspace(start + 100, len(content) - 3000, 4).astype(int).tolist():
        path.write_bytes(content[:place] + b"\xff" * 60 + content[place + 60 :])
        failed += check(path, "pyav") < 35
    assert failed > 1


def test_a_long_video_is_decoded_in_one_pass(write_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened twice, for its table and for its pictures, however many clips are taken."""
    path = write_video(times=tuple(range(0, 28800, 24)), size=(32, 32))
    assert "too many" in (decord_reader.obstacle(read_frame_table(path)) or "") and is_plain(read_frame_table(path))
    opened = []
    for module in ("frame_table", "frame_stream", "pyav_reader"):
        real = __import__(f"flcache.videos.{module}", fromlist=["open_video"]).open_video
        monkeypatch.setattr(
            f"flcache.videos.{module}.open_video",
            lambda *given, real=real, module=module, **options: opened.append(module) or real(*given, **options),
        )
    with OpenedVideo(path) as video:
        for start_s in range(40):
            assert video.decode(_clip(start_s, 0.25, 4)).decoder == "pyav"
    assert opened == ["frame_table", "frame_stream"]


def test_a_file_that_changes_is_opened_anew(write_video: Callable[..., Path]) -> None:
    path = write_video()
    video = OpenedVideo(path)
    video.decode(_clip(0, 0.2, 4))
    assert video.is_of(path) and not video.is_of(path.with_name("other.mp4"))
    content = path.read_bytes()
    path.unlink()
    assert not video.is_of(path)
    path.write_bytes(content)
    assert not video.is_of(path)


def test_real_files_good_odd_and_bad(shared_videos: Path) -> None:
    files = sorted([*shared_videos.glob("odd/*"), *shared_videos.glob("bad/*"), *shared_videos.glob("val/*/*")])
    assert len(files) > 20
    assert sum(check(path, count=3, frames=2) for path in files) > 150


def test_real_files_by_the_stream_alone(shared_videos: Path) -> None:
    """Also those that are short enough for decord."""
    streamed = 0
    for path in sorted(shared_videos.glob("odd/*")):
        table = read_frame_table(path)
        if not is_plain(table):
            continue
        stream = FrameStream(path, table, max_pixels=MAX_PIXELS)
        for first in range(0, len(table) - 8, max(1, len(table) // 4)):
            wanted = np.arange(first, first + 8, 2)
            exact = decode_clip(path, ClipRequest(4, 0.0, tuple(table.seconds[wanted]), None, "pad"), decoder="pyav")
            assert np.array_equal(stream.read(wanted), exact.frames), (path, first)
        stream.close()
        streamed += 1
    assert streamed > 2
