"""Arrays of a video's frames: which rows a clip gets, from a file or from a tar, and what is refused with a reason."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcache.errors import DecodeError
from flcache.videos import ClipRequest, DecodedClip, DecodePool, VideoFolder
from flcache.videos.decoders import OpenedVideo
from flcache.videos.frame_arrays import read_rows, row_width
from flcache.videos.remote_path import RemotePath

WriteVideo = Callable[..., Path]
FRAMES = 30
WIDTHS = {"actions": 2, "states": 3}
ACTIONS = np.random.default_rng(0).normal(size=(FRAMES, 2))
STATES = np.arange(3 * FRAMES).reshape(FRAMES, 1, 3)


def request(*seconds: float) -> ClipRequest:
    return ClipRequest(len(seconds), seconds[0], seconds, None, "pad")


@pytest.fixture
def video(write_video: WriteVideo) -> Path:
    """30 frames at 25 a second, and their arrays."""
    path = write_video()
    np.savez(path.with_suffix(".npz"), actions=ACTIONS, states=STATES, text=np.array(["a"]))
    return path


def decoded(video: Any, wanted: ClipRequest) -> DecodedClip:
    with OpenedVideo(video, arrays=WIDTHS) as opened:
        return opened.decode(wanted)


def test_states_are_those_of_the_frames_and_actions_the_means_up_to_the_next(video: Path) -> None:
    clip = decoded(video, request(0.0, 0.2, 0.32, 0.6))  # frames 0, 5, 8 and 15
    np.testing.assert_array_equal(clip.arrays["states"], STATES[[0, 5, 8, 15], 0].astype(np.float32), strict=True)
    spans = [(0, 5), (5, 8), (8, 15), (15, 22)]
    means = np.array([ACTIONS[start:stop].astype(np.float32).mean(0, dtype=np.float64) for start, stop in spans])
    np.testing.assert_array_equal(clip.arrays["actions"], means.astype(np.float32), strict=True)


def test_a_frame_that_is_shown_twice_or_followed_by_its_neighbour_has_its_own_row(video: Path) -> None:
    clip = decoded(video, request(0.0, 0.02, 0.04, 0.06, 0.08))
    np.testing.assert_array_equal(clip.arrays["actions"], ACTIONS[[0, 0, 1, 1, 2]].astype(np.float32))


def test_a_clip_beyond_the_end_repeats_the_last_row(video: Path) -> None:
    clip = decoded(video, request(1.12, 1.16, 1.2, 1.24))  # frame 29 is the last
    assert clip.mask.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(clip.arrays["actions"], ACTIONS[[28, 29, 29, 29]].astype(np.float32))


def test_worker_processes_and_tars_give_the_same_rows(video: Path) -> None:
    tar = video.with_name("shard.tar")
    with tarfile.open(tar, "w") as archive:
        for file in (video, video.with_suffix(".npz")):
            archive.add(file, f"a/{file.name}")
    member = VideoFolder(tar.parent).find("shard.tar/a/video.mp4")
    assert member is not None
    wanted = request(0.0, 0.2, 0.4)
    with DecodePool(1, 60, arrays=WIDTHS) as pool:
        found = [clip for _, clip in pool.decode((None, place, wanted) for place in (video, member))]
    for clip in found:
        assert isinstance(clip, DecodedClip) and set(clip.arrays) == set(WIDTHS)
        for name, rows in decoded(video, wanted).arrays.items():
            np.testing.assert_array_equal(clip.arrays[name], rows, strict=True)


def test_without_arrays_no_file_is_looked_at(write_video: WriteVideo) -> None:
    with OpenedVideo(write_video()) as opened:
        assert opened.decode(request(0.0)).arrays == {}


def saved(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


REFUSED = {
    "none": (None, "no arrays", "no such file"),
    "another": (saved(states=STATES), "no arrays", "holds no array actions"),
    "rows": (saved(actions=ACTIONS[1:]), "wrong arrays", "actions has 29 rows, the video 30 frames on display"),
    "width": (saved(actions=ACTIONS[:, :1]), "wrong arrays", "actions has 1 numbers a row, other videos have 2"),
    "nan": (saved(actions=np.where(ACTIONS > 1, np.nan, ACTIONS)), "wrong arrays", r"row \d+ is not finite"),
    "large": (saved(actions=1e300 * ACTIONS), "wrong arrays", "row 0 is not finite in float32"),
    "text": (saved(actions=np.array(["left"] * FRAMES)), "wrong arrays", "not rows of 1 to 65536 real numbers"),
    "objects": (saved(actions=np.array([{}] * FRAMES)), "wrong arrays", "actions is object"),
    "scalar": (saved(actions=np.float32(1)), "wrong arrays", "not rows"),
    "cut": (saved(actions=ACTIONS)[:-9], "wrong arrays", "damaged, or no file of numpy.savez"),
    "empty": (b"", "wrong arrays", "damaged"),
}


@pytest.mark.parametrize(("content", "reason", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_with_a_reason(
    content: bytes | None, reason: str, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DecodeError, match=words) as error:
        read_rows(tmp_path / "a.mp4", {"actions": 2}, FRAMES)
    assert error.value.reason == reason and str(tmp_path / "a.npz") in str(error.value)


def test_bytes_that_are_flipped_never_pass_unnoticed(tmp_path: Path) -> None:
    content, rng, same = saved(actions=ACTIONS), np.random.default_rng(1), 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        (tmp_path / "a.npz").write_bytes(damaged)
        try:
            rows = read_rows(tmp_path / "a.mp4", {"actions": 2}, FRAMES)["actions"]
        except DecodeError:
            continue
        np.testing.assert_array_equal(rows, ACTIONS.astype(np.float32))  # a date or the like
        same += 1
    assert same < 100


def test_beside_a_video_in_a_bucket_nothing_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"b/a\.npz: .* not fetched from a bucket; put both into tars"):
        read_rows(RemotePath("s3://b/a.mp4", "", copy=tmp_path / "a.mp4"), {"actions": 2}, FRAMES)


def test_the_header_says_how_wide_a_row_is(video: Path) -> None:
    assert {name: row_width(video, name) for name in WIDTHS} == WIDTHS
    with pytest.raises(DecodeError, match="text is <U1"):
        row_width(video, "text")
