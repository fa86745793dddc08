"""The same properties on files from elsewhere, which no encoder of ours has smoothed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flcache.errors import DecodeError
from flcache.videos import ClipRequest, decode_clip, decord_reader
from flcache.videos.frame_table import read_frame_table


def spread(path: Path, count: int = 7) -> ClipRequest:
    table = read_frame_table(path)
    times = np.random.default_rng(0).uniform(0, table.end_s, count)
    return ClipRequest(count, 0.0, tuple(sorted(times)), None, "drop")


def test_good_files_decode_alike_by_every_decoder(shared_videos: Path) -> None:
    files = sorted([*shared_videos.glob("train/*/*"), *shared_videos.glob("val/*/*"), *shared_videos.glob("odd/*")])
    assert len(files) > 20
    by_decord = 0
    for path in files:
        request = spread(path)
        exact, automatic = decode_clip(path, request, decoder="pyav"), decode_clip(path, request)
        assert np.array_equal(exact.frames, automatic.frames), path
        assert np.array_equal(exact.timestamps, automatic.timestamps) and exact.mask.all()
        by_decord += automatic.decoder == "decord"
    assert by_decord >= 10 or decord_reader.missing()


@pytest.mark.parametrize("name", ["nasa_13013_rotated.mp4", "video_90.mov"])
def test_rotation_is_applied(shared_videos: Path, name: str) -> None:
    path = shared_videos / "odd" / name
    for decoder in ("auto", "pyav"):
        height, width = decode_clip(path, spread(path), decoder=decoder).frames.shape[1:3]
        assert height > width


@pytest.mark.parametrize(
    ("name", "frames"), [("av1_video.mkv", 125), ("discard_first_keyframe.mp4", 25), ("variable_fps.mp4", 86)]
)
def test_only_displayed_frames_count(shared_videos: Path, name: str, frames: int) -> None:
    path = shared_videos / "odd" / name
    assert len(read_frame_table(path)) == frames
    assert decode_clip(path, ClipRequest(frames, 0.0, None, 1, "drop")).frames.shape[0] == frames


def test_bad_files_fail_with_a_reason(shared_videos: Path) -> None:
    files = sorted(shared_videos.glob("bad/*"))
    assert len(files) == 8
    whole_clip = ClipRequest(16, 4.63, tuple(4.63 + i / 4 for i in range(16)), None, "pad")
    for path in files:
        with pytest.raises(DecodeError) as error:
            decode_clip(path, whole_clip)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "good_s"), [("payload_damaged", 7.5), ("payload_cut", 7.5), ("corrupted", 2.5)])
def test_the_good_part_of_a_bad_file_is_bit_exact(shared_videos: Path, name: str, good_s: float) -> None:
    path = shared_videos / "bad" / f"{name}.mp4"
    request = ClipRequest(8, 0.0, tuple(np.linspace(0, good_s, 8)), None, "pad")
    clip = decode_clip(path, request)
    assert clip.mask.all() and len({frame.tobytes() for frame in clip.frames}) == 8
    if name != "corrupted":
        original = shared_videos / "val" / "skateboarding" / "tcnasa13013_000000_000013.mp4"
        assert np.array_equal(clip.frames, decode_clip(original, request).frames)
