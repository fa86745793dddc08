"""Files that were made to lead a decoder elsewhere: to another file, to a server, into waiting for ever."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from flcache.errors import DecodeError
from flcache.videos import ClipRequest, DecodedClip, decode_clip, decord_reader, probe
from flcache.videos.frame_table import read_frame_table

needs_decord = pytest.mark.skipif(decord_reader.missing() is not None, reason="decord is not on this machine")

FRAMES = 25
PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile '{target}'\n"
EVERY_FRAME = ClipRequest(FRAMES, 0.0, None, 1, "pad")


def grey(path: Path, level: int, container: str = "mpegts") -> Path:
    """A video whose pictures have about one grey level, so that its pixels betray where they come from.

    The same bytes each time: a random identity of a Matroska track may look like an element that crops.
    """
    with av.open(str(path), "w", format=container, options={"fflags": "+bitexact"}) as sink:
        stream: Any = sink.add_stream("libx264", rate=25, options={"g": "5", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 64, 48, "yuv420p", 1
        for number in range(FRAMES):
            picture = np.full((48, 64, 3), level + number % 5, dtype=np.uint8)
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        sink.mux(stream.encode(None))
    return path


def padded(playlist: str) -> bytes:
    """The playlist as the first packet of an MPEG transport stream, which has 188 bytes."""
    assert len(playlist) < 186
    return (playlist + "#").encode().ljust(187, b"x") + b"\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that nobody listed: white, where the listed ones are dark."""
    return grey(tmp_path / "secret.ts", 220)


def is_dark(clip: DecodedClip) -> bool:
    return bool((clip.frames < 100).all())


@pytest.mark.parametrize("decoder", ["auto", "pyav", "decord"])
@pytest.mark.parametrize("name", ["video.mp4", "video.ts", "video.m3u8"])
@pytest.mark.parametrize("where", ["secret.ts", "{folder}/secret.ts", "file:{folder}/secret.ts"])
def test_a_playlist_before_a_video_leads_nowhere(
    decoder: str, name: str, where: str, tmp_path: Path, secret: Path
) -> None:
    own = grey(tmp_path / "own.ts", 20).read_bytes()
    path = tmp_path / name
    path.write_bytes(padded(PLAYLIST.format(target=where.format(folder=tmp_path)[-90:])) + own)
    try:
        clip = decode_clip(path, EVERY_FRAME, decoder=decoder)
    except DecodeError as error:
        assert "\n" not in str(error)
    else:
        assert is_dark(clip) and clip.decoder == "pyav"


@pytest.mark.parametrize("text", [PLAYLIST, CONCAT])
@pytest.mark.parametrize("name", ["x.m3u8", "x.mp4", "x.ffconcat", "x.txt", "x.mkv"])
def test_a_list_of_files_is_no_video(text: str, name: str, tmp_path: Path, secret: Path) -> None:
    (tmp_path / name).write_text(text.format(target="secret.ts"))
    for open_it in (lambda path: decode_clip(path, EVERY_FRAME), probe):
        with pytest.raises(DecodeError) as error:
            open_it(tmp_path / name)
        assert error.value.reason == "not a video" and "\n" not in str(error.value)


@needs_decord
@pytest.mark.parametrize(("name", "container"), [("a.ts", "mpegts"), ("a.mp4", "mpegts"), ("a.avi", "avi")])
def test_decord_gets_mp4_and_matroska_only(name: str, container: str, tmp_path: Path) -> None:
    assert decode_clip(grey(tmp_path / name, 20, container), EVERY_FRAME).decoder == "pyav"
    for trusted in ("mp4", "matroska"):
        assert decode_clip(grey(tmp_path / "trusted", 20, trusted), EVERY_FRAME).decoder == "decord"


@needs_decord
def test_decord_is_asked_what_it_takes_a_file_for(tmp_path: Path, secret: Path) -> None:
    """Also where PyAV, asked first, saw an MP4: the bytes decide, and both must read them alike."""
    path = grey(tmp_path / "video.mp4", 20, "mp4")
    table = read_frame_table(path)
    wanted = np.arange(3)
    assert (decord_reader.read_frames(path, table, wanted) < 100).all()
    path.write_bytes(padded(PLAYLIST.format(target="secret.ts")) + path.read_bytes())
    with pytest.raises(DecodeError, match="takes it for another container"):
        decord_reader.read_frames(path, table, wanted)


@needs_decord
def test_a_file_whose_times_differ_for_decord_is_left_to_pyav(tmp_path: Path) -> None:
    """The table of one file and the bytes of another of as many frames: what a swap between two opens would do."""
    path, other = grey(tmp_path / "video.mp4", 20, "mp4"), tmp_path / "other.mp4"
    table = read_frame_table(path)
    with av.open(str(other), "w") as sink:
        stream: Any = sink.add_stream("libx264", rate=10, options={"g": "5", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(FRAMES):
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        sink.mux(stream.encode(None))
    with pytest.raises(DecodeError, match="at other times"):
        decord_reader.read_frames(other, table, np.arange(3))


def encoded(path: Path, *codecs: str) -> Path:
    """A stream of 25 grey pictures in each of `codecs`, all with the same times and of one size."""
    with av.open(str(path), "w") as sink:
        streams: list[Any] = [sink.add_stream(codec, rate=25, options={"g": "5", "bf": "0"}) for codec in codecs]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt, stream.thread_count = 64, 48, "yuv420p", 1
        for level in range(FRAMES):
            for stream in streams:
                picture = np.full((48, 64, 3), 20 + level % 5, np.uint8)
                sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            sink.mux(stream.encode(None))
    return path


@needs_decord
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_decord_must_see_the_codec_that_pyav_sees(suffix: str, tmp_path: Path) -> None:
    """Container, number of frames, times and size agree, and only the codec differs."""
    paths = {codec: encoded(tmp_path / f"{codec}{suffix}", codec) for codec in ("libx264", "mpeg4")}
    tables = {codec: read_frame_table(path) for codec, path in paths.items()}
    for codec, other in (("libx264", "mpeg4"), ("mpeg4", "libx264")):
        assert decord_reader.read_frames(paths[codec], tables[codec], np.arange(3)).shape == (3, 48, 64, 3)
        with pytest.raises(DecodeError, match="decord sees streams of"):
            decord_reader.read_frames(paths[codec], tables[other], np.arange(3))


@needs_decord
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("second", ["libx264", "mpeg4", "libvpx-vp9"])
def test_decord_gets_no_file_of_several_streams(second: str, suffix: str, tmp_path: Path) -> None:
    """Which of them is best is for each version of FFmpeg to say."""
    path = encoded(tmp_path / f"video{suffix}", "libx264", second)
    assert decode_clip(path, EVERY_FRAME).decoder == "pyav"


def decord_errors() -> list[type[BaseException]]:
    """Every class of errors that decord defines, wherever in the package it does."""
    import decord

    modules = [decord, decord._ffi.base, decord.video_reader, decord.ndarray, decord.base]
    found = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    return sorted((kind for kind in found if issubclass(kind, Exception) and "decord" in kind.__module__), key=str)


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@needs_decord
def test_every_error_of_decord_leads_to_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import decord

    path = grey(tmp_path / "video.mp4", 20, "mp4")
    own = decord_errors()
    assert {kind.__name__ for kind in own} >= {"DECORDError", "DECORDLimitReachedError"}
    for kind in (*own, RuntimeError, ValueError, TypeError, IndexError, AssertionError, OSError):
        for words in ("", "first\nsecond"):
            monkeypatch.setattr(decord.VideoReader, "get_batch", raising(kind(words)))
            assert decode_clip(path, EVERY_FRAME).decoder == "pyav"
            with pytest.raises(DecodeError) as raised:
                decode_clip(path, EVERY_FRAME, decoder="decord")
            assert raised.value.reason == "undecodable frame" and "\n" not in str(raised.value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, list[str]]]:
    """A real server of a real video: its port, and the requests that reached it."""
    content, requests = grey(tmp_path / "served.mp4", 220, "mp4").read_bytes(), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield http.server_port, requests
        http.shutdown()


def test_a_path_is_never_an_address(
    server: tuple[int, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, requests = server
    monkeypatch.chdir(tmp_path)
    local = Path(f"http:/127.0.0.1:{port}/x.mp4")
    local.parent.mkdir(parents=True)
    for decoder in ("auto", "pyav", "decord"):
        with pytest.raises(DecodeError, match="no such file"):
            decode_clip(local, EVERY_FRAME, decoder=decoder)
    grey(tmp_path / local, 20, "mp4")
    for decoder in ("auto", "pyav", *([] if decord_reader.missing() else ["decord"])):
        assert is_dark(decode_clip(local, EVERY_FRAME, decoder=decoder))
    assert probe(local).num_frames == FRAMES and requests == []


@pytest.mark.parametrize("name", ["concat:secret.ts", "file:secret.ts", "subfile,,start,0,end,0,,:secret.ts", "fd:0"])
def test_a_name_is_never_a_protocol(name: str, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DecodeError, match="no such file"):
        probe(Path(name))
    grey(tmp_path / name, 20, "mp4")
    for decoder in ("auto", "pyav"):
        assert is_dark(decode_clip(Path(name), EVERY_FRAME, decoder=decoder))


@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/x.mp4", "http://127.0.0.1:{port}/x.ts"])
def test_what_a_file_says_reaches_no_server(target: str, server: tuple[int, list[str]], tmp_path: Path) -> None:
    port, requests = server
    own = grey(tmp_path / "own.ts", 20).read_bytes()
    for text in (PLAYLIST, CONCAT):
        path = tmp_path / "video.mp4"
        path.write_bytes(padded(text.format(target=target.format(port=port))) + own)
        try:
            assert is_dark(decode_clip(path, EVERY_FRAME))
        except DecodeError as error:
            assert "\n" not in str(error)
    assert requests == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "a pipe"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
)
def test_only_regular_files_are_opened(make: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    make(path)
    for open_it in (lambda path: decode_clip(path, EVERY_FRAME), probe):
        with pytest.raises(DecodeError, match=f"this is {words}") as error:
            open_it(path)
        assert error.value.reason == "not readable"


def test_a_title_that_is_no_text_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as sink:
        sink.metadata["title"] = "a title"
        stream: Any = sink.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sink.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        sink.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"a title", b"\xff\xfe\x80\x81\xc3\x28\xff"))
    assert probe(path).width == 64
    assert is_dark(decode_clip(path, ClipRequest(1, 0.0, None, 1, "pad")))
