from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from flcache.errors import ConfigError, DecodeError
from flcache.videos import ClipRequest, DecodedClip, decode_clip, decord_reader, probe
from flcache.videos.frame_table import read_frame_table

needs_decord = pytest.mark.skipif(decord_reader.missing() is not None, reason="decord is not on this machine")


def at(*seconds: float, short: str = "pad") -> ClipRequest:
    return ClipRequest(len(seconds), seconds[0], tuple(seconds), None, short)


def every(stride: int, frames: int, start_s: float = 0.0, short: str = "pad") -> ClipRequest:
    return ClipRequest(frames, start_s, None, stride, short)


def all_frames(path: Path) -> np.ndarray:
    """The plainest decoding there is: (N, h, w, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def assert_same(one: DecodedClip, other: DecodedClip) -> None:
    assert np.array_equal(one.frames, other.frames)
    assert np.array_equal(one.timestamps, other.timestamps) and np.array_equal(one.mask, other.mask)


def set_matrix(path: Path, box: bytes, matrix: tuple[int, int, int, int]) -> None:
    """Rewrite the display matrix in the header of the movie (`mvhd`) or of its track (`tkhd`): ISO/IEC 14496-12, 8."""
    a, b, c, d = (value * 2**16 for value in matrix)
    content = bytearray(path.read_bytes())
    start = content.index(box) + {b"mvhd": 40, b"tkhd": 44}[box]
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    path.write_bytes(content)


def turn_by_matrix(stream: Any) -> None:
    stream.set_display_rotation(90)


def turn_by_tag(stream: Any) -> None:
    stream.metadata["rotate"] = "90"


VARIANTS = {
    "b_frames": {"options": {"g": "12", "bf": "3"}},
    "one_keyframe": {"options": {"g": "250"}},
    "all_keyframes": {"options": {"g": "1"}},
    "open_groups": {"options": {"g": "8", "bf": "2", "x264-params": "open-gop=1"}},
    "variable_rate": {"times": (0, 10, 60, 61, 90, 200, 210, 400, 401, 560, 600, 610)},
    "late_start": {"times": tuple(range(5000, 5720, 24))},
    "matroska": {"name": "video.mkv"},
    "odd_size": {"size": (97, 131), "codec": "mpeg4", "options": {}},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=6:bframes=2"}},
    "avi": {"name": "video.avi", "codec": "mpeg4", "options": {"g": "6", "bf": "2"}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_frame_is_found_at_its_time_by_each_decoder(variant: str, write_video: Callable[..., Path]) -> None:
    path = write_video(**VARIANTS[variant])
    truth, table = all_frames(path), read_frame_table(path)
    assert len(table) == len(truth) and table.seconds[0] == 0 and (np.diff(table.seconds) > 0).all()
    usable = [name for name in ("auto", "pyav", "decord") if name != "decord" or not decord_reader.obstacle(table)]
    for decoder in usable:
        for index in (0, 1, len(truth) // 2, len(truth) - 2, len(truth) - 1):
            clip = decode_clip(path, at(table.seconds[index]), decoder=decoder)
            assert np.array_equal(clip.frames[0], truth[index]), (decoder, index)
            assert clip.timestamps[0] == table.seconds[index] and clip.mask.all()
        whole = decode_clip(path, every(1, len(truth)), decoder=decoder)
        assert np.array_equal(whole.frames, truth) and whole.mask.all()


@needs_decord
def test_decord_serves_plain_files(write_video: Callable[..., Path]) -> None:
    assert decode_clip(write_video(), at(0.1, 0.5)).decoder == "decord"
    with pytest.raises(DecodeError, match="not to be trusted"):
        decode_clip(write_video("video.avi", codec="mpeg4", options={}), at(0.1), decoder="decord")


def test_nominal_times_are_those_asked_for_and_not_those_on_display(write_video: Callable[..., Path]) -> None:
    """A slow video shows one frame several times, and one that has ended its last."""
    path = write_video(times=(0, 60, 300, 330))  # ends at 0.65 s: the last frame stays as long as most
    asked = (0.0, 0.2, 0.4, 0.6, 0.8)
    clip = decode_clip(path, at(*asked))
    assert tuple(clip.nominal) == asked and clip.timestamps[1] == clip.timestamps[2]
    table = read_frame_table(path)
    strided = decode_clip(path, every(2, 4))
    assert strided.nominal == pytest.approx([0, *np.cumsum([2 * table.end_s / 4] * 3)])
    assert strided.timestamps[2] == strided.timestamps[3] and strided.mask.tolist() == [True, True, False, False]
    even = decode_clip(write_video("even.mp4"), every(3, 5, 0.2))
    assert even.nominal == pytest.approx(even.timestamps)


def test_a_frame_stays_until_the_next_one(write_video: Callable[..., Path]) -> None:
    path = write_video(times=(0, 60, 300, 330))
    clip = decode_clip(path, at(0.0, 0.09, 0.1, 0.3, 0.49, 0.5, 0.56))
    assert clip.timestamps.tolist() == pytest.approx([0, 0, 0.1, 0.1, 0.1, 0.5, 0.55])
    assert clip.mask.all()


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_past_the_end_the_last_frame_is_repeated_under_the_mask(decoder: str, write_video: Callable[..., Path]) -> None:
    path = write_video()  # 30 frames, 1.2 s; the last comes at 1.16 s
    clip = decode_clip(path, at(1.0, 1.16, 1.199, 1.3, 2.0), decoder=decoder)
    assert clip.mask.tolist() == [True, True, True, False, False]
    assert (clip.frames[2:] == clip.frames[1]).all() and not (clip.frames[0] == clip.frames[1]).all()
    strided = decode_clip(path, every(10, 5), decoder=decoder)
    assert strided.mask.tolist() == [True, True, True, False, False]
    assert strided.timestamps.tolist() == pytest.approx([0, 0.4, 0.8, 1.16, 1.16])


def test_what_may_not_be_padded_is_an_error(write_video: Callable[..., Path]) -> None:
    path = write_video()
    with pytest.raises(DecodeError, match="shorter than the clip"):
        decode_clip(path, at(1.0, 1.3, short="drop"))
    with pytest.raises(DecodeError, match="shorter than the clip"):
        decode_clip(path, every(10, 5, short="drop"))
    for beyond in (at(7.0, 8.0), every(1, 2, start_s=7.0)):
        with pytest.raises(DecodeError, match=r"starts at 7\.000 s, the video ends at 1\.200 s"):
            decode_clip(path, beyond)


def test_a_request_is_checked(write_video: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="timestamps or a stride"):
        ClipRequest(1, 0.0, None, None, "pad")
    with pytest.raises(ConfigError, match="2 frames has 1"):
        ClipRequest(2, 0.0, (0.0,), None, "pad")
    with pytest.raises(ConfigError, match="choose one of auto, decord, pyav"):
        decode_clip(write_video(), at(0.0), decoder="opencv")


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_damage_ends_the_clips_it_reaches_and_no_other(decoder: str, write_video: Callable[..., Path]) -> None:
    path = write_video(times=tuple(range(0, 24 * 60, 24)), options={"g": "20", "bf": "0", "crf": "10"})
    truth = all_frames(path)
    with av.open(str(path)) as container:
        packet = next(packet for i, packet in enumerate(container.demux(video=0)) if i == 30)
    content = bytearray(path.read_bytes())
    middle = packet.pos + packet.size // 2
    content[middle : middle + 64] = b"\xff" * 64
    path.write_bytes(content)
    for good in (range(29), range(40, 60)):
        clip = decode_clip(path, at(*(i * 0.04 for i in good)), decoder=decoder)
        assert np.array_equal(clip.frames, truth[good[0] : good[-1] + 1])
    with pytest.raises(DecodeError, match=r"video.mp4: frame 30 at 1.200 s cannot be decoded: \w+"):
        decode_clip(path, at(1.0, 1.3), decoder=decoder)


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv"])
def test_a_file_cut_off_is_damaged_and_not_short(name: str, write_video: Callable[..., Path]) -> None:
    options = {"options": {"movflags": "faststart"}} if name.endswith("mp4") else {}
    path = write_video(name, times=tuple(range(0, 24 * 100, 24)))
    if options:
        path = _with_header_first(path)
    truth = all_frames(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    good = decode_clip(path, at(0.2, 0.6))
    assert np.array_equal(good.frames, truth[[5, 15]])
    for beyond in (at(0.2, 3.9), at(3.8, 3.9), every(30, 4)):
        with pytest.raises(DecodeError, match=r"cut off|cannot be decoded"):
            decode_clip(path, beyond)


def _with_header_first(path: Path) -> Path:
    """The same packets with the index in front, as downloads have it."""
    target = path.with_name("faststart.mp4")
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                sink.mux(packet)
    return target


def test_what_is_no_video_is_refused_with_its_reason(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    for name, content, reason in (
        ("empty.mp4", b"", "the file is empty"),
        ("text.mp4", b"<html>404</html>" * 99, "cannot be opened"),
        ("head.mp4", write_video().read_bytes()[:2000], "moov atom not found"),
    ):
        (tmp_path / name).write_bytes(content)
        for _ in range(2):
            with pytest.raises(DecodeError, match=f"{name}.*{reason}") as error:
                decode_clip(tmp_path / name, at(0.0))
            assert "\n" not in str(error.value)
        with pytest.raises(DecodeError, match=reason):
            probe(tmp_path / name)
    with pytest.raises(DecodeError, match="no such file"):
        probe(tmp_path / "nowhere.mp4")


def test_the_terminal_stays_clean(
    tmp_path: Path, write_video: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_video(options={"g": "250", "crf": "10"})
    content = bytearray(path.read_bytes())
    content[3000:3200] = b"\xff" * 200
    path.write_bytes(content)
    (tmp_path / "empty.mp4").touch()
    for broken in (path, tmp_path / "empty.mp4"):
        with pytest.raises(DecodeError):
            decode_clip(broken, at(0.0, 1.0))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("quarter_turns", "matrix"), [(3, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (1, (0, -1, 1, 0))])
def test_rotation_is_applied_by_both(
    quarter_turns: int, matrix: tuple[int, int, int, int], write_video: Callable[..., Path]
) -> None:
    path = write_video()
    upright = np.rot90(all_frames(path), quarter_turns, axes=(1, 2))
    set_matrix(path, b"tkhd", matrix)
    for decoder in ("auto", "pyav"):
        assert np.array_equal(decode_clip(path, every(1, 30), decoder=decoder).frames, upright)


@pytest.mark.parametrize("box", [b"tkhd", b"mvhd"])
@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (0, 1, 1, 0), (1, 1, -1, 1), (-1, 0, 0, 1), (0, 1, -1, 0)])
def test_matrices_that_decoders_read_differently_leave_them_alike(
    box: bytes, matrix: tuple[int, int, int, int], write_video: Callable[..., Path]
) -> None:
    path = write_video()
    assert read_frame_table(path).as_stored
    set_matrix(path, box, matrix)
    assert not read_frame_table(path).as_stored
    exact, automatic = (decode_clip(path, every(1, 30), decoder=decoder) for decoder in ("pyav", "auto"))
    assert np.array_equal(exact.frames, automatic.frames)


def test_pictures_that_a_container_forgets_to_reorder_are_counted(write_video: Callable[..., Path]) -> None:
    path = write_video(**VARIANTS["b_frames"])
    truth, content = all_frames(path), path.read_bytes()
    # the differences of display and decoding times, and the edit list that hides the first of these
    path.write_bytes(content.replace(b"ctts", b"free").replace(b"elst", b"free"))
    table = read_frame_table(path)
    assert b"ctts" in content and len(table) == len(truth) and not table.has_display_times
    for decoder in ("auto", "pyav"):
        for index in (0, 5, 6, 7, len(truth) - 1):
            clip = decode_clip(path, at(table.seconds[index]), decoder=decoder)
            assert np.array_equal(clip.frames[0], truth[index]), (decoder, index)


@pytest.mark.parametrize("turn", [turn_by_matrix, turn_by_tag])
def test_matroska_that_is_turned_is_left_to_pyav(turn: Callable[[Any], None], tmp_path: Path) -> None:
    paths = [tmp_path / "plain.mkv", tmp_path / "turned.mkv"]
    for path, change in zip(paths, (lambda _: None, turn), strict=True):
        with av.open(path, "w", options={"fflags": "+bitexact"}) as container:
            stream: Any = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            change(stream)
            for number in range(30):
                picture = np.full((64, 96, 3), 8 * number, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    assert [read_frame_table(path).as_stored for path in paths] == [True, False]
    exact, automatic = (decode_clip(paths[1], every(1, 30), decoder=decoder) for decoder in ("pyav", "auto"))
    assert np.array_equal(exact.frames, automatic.frames)


def test_probe_reads_the_header(write_video: Callable[..., Path]) -> None:
    info = probe(write_video())
    assert (info.duration_s, info.num_frames, info.fps) == (pytest.approx(1.2), 30, pytest.approx(25.0))
    assert (info.width, info.height, info.codec) == (128, 96, "h264")


def test_a_damaged_time_does_not_give_another_picture(write_video: Callable[..., Path]) -> None:
    """One picture is moved to just behind another: decord counts pictures, and may give a neighbour of it."""
    path = write_video(**VARIANTS["b_frames"])
    content, apart = path.read_bytes(), int(np.diff(read_frame_table(path).pts).min())
    entries = content.index(b"ctts") + 4 + 8  # behind the name, version and flags, and the number of entries
    moved = 0
    for entry in range(entries, entries + 8 * 12, 8):
        count, offset = struct.unpack_from(">Ii", content, entry)
        damaged = bytearray(content)
        struct.pack_into(">Ii", damaged, entry, count, offset - 2 * apart + 1)
        path.write_bytes(damaged)
        table = read_frame_table(path)
        moved += table.has_doubtful_order
        for second in table.seconds[:24:2] if table.has_doubtful_order else ():
            found = [decoded_or_error(path, second, decoder) for decoder in ("auto", "pyav")]
            assert found[0] == found[1], (entry, second)
    assert moved > 2


def decoded_or_error(path: Path, second: float, decoder: str) -> bytes | str:
    try:
        return decode_clip(path, at(second), decoder=decoder).frames.tobytes()
    except DecodeError as error:
        return str(error)
