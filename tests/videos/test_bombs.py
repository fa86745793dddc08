"""Small files of huge pictures, and what reading them may cost: memory of a worker, and of the process that waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcache.errors import DecodeError
from flcache.videos import ClipRequest, ClipRule, DecodedClip, DecodePool, VideoInfo, decode_clip
from flcache.videos.look_ahead import LookAhead

MIB = 2**20
SIDE = 16_000
ONE_FRAME = ClipRequest(1, 0.0, None, 1, "pad")

ENCODER = """
import sys, av, numpy as np
path, codec, pixels, side, count, *options = sys.argv[1:]
with av.open(path, "w") as sink:
    stream = sink.add_stream(codec, rate=25, options=dict(option.split("=", 1) for option in options))
    stream.width = stream.height = int(side)
    stream.pix_fmt, stream.thread_count = pixels, 1
    picture = av.VideoFrame(int(side), int(side), pixels)
    for plane in picture.planes:
        plane.update(bytes(plane.buffer_size))
    for number in range(int(count)):
        picture.pts = number
        sink.mux(stream.encode(picture))
    sink.mux(stream.encode(None))
"""


def bomb(path: Path, codec: str, pixels: str, frames: int, *options: str) -> Path:
    """A file of black pictures of 16,000 x 16,000, made by a process whose memory goes with it."""
    command = [sys.executable, "-c", ENCODER, str(path), codec, pixels, str(SIDE), str(frames), *options]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bombs")
    x264 = ("preset=ultrafast", "qp=40", "x264-params=ref=1:rc-lookahead=0:sync-lookahead=0:bframes=0")
    return [
        bomb(folder / "h264.mp4", "libx264", "yuv420p", 2, *x264),
        bomb(folder / "png.mov", "png", "gray", 1),
    ]


DECODE = """
import json, os, sys, threading, time
from pathlib import Path
from flcache.videos import ClipRequest, DecodePool

def peaks(pids):
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        yield from (int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM"))

path, frames, max_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
worker_mib = 0
with DecodePool(1, 120, max_bytes=max_bytes) as pool:
    def watch():
        global worker_mib
        while True:
            worker_mib = max([worker_mib, *peaks(pool.worker_pids)])
            time.sleep(0.005)
    threading.Thread(target=watch, daemon=True).start()
    for _, result in pool.decode((k, path, ClipRequest(frames, 0.0, None, 1, "pad")) for k in range(3)):
        pass
    time.sleep(0.05)
print(json.dumps({"result": str(result), "reason": getattr(result, "reason", None), "worker_mib": worker_mib,
                  "parent_mib": max(peaks([os.getpid()]))}))
"""


def decoded_apart(path: Path, frames: int, max_bytes: int) -> dict[str, Any]:
    """What a pool in a process of its own says of a clip, and the most memory it and its worker had, in MiB."""
    command = [sys.executable, "-c", DECODE, str(path), str(frames), str(max_bytes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_bomb_is_refused_by_its_header(bombs: list[Path]) -> None:
    for path in bombs:
        assert path.stat().st_size < 3 * MIB
        found = decoded_apart(path, 4, ClipRule.max_bytes)
        assert found["reason"] == "too large" and "clip.max_bytes" in found["result"], found
        assert found["worker_mib"] < 200 and found["parent_mib"] < 200, found


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
def test_a_picture_larger_than_its_header_says_costs_no_memory(bombs: list[Path], tmp_path: Path) -> None:
    """The size in the container is believed by nobody who allocates."""
    content = bytearray(bombs[0].read_bytes())
    start = content.index(b"avc1") + 28  # width and height of the sample entry (ISO/IEC 14496-12, 12.1.3)
    content[start : start + 4] = (64).to_bytes(2, "big") * 2
    path = tmp_path / "liar.mp4"
    path.write_bytes(content)
    found = decoded_apart(path, 4, 64 * MIB)
    assert found["reason"] in ("too large", "undecodable frame"), found
    assert found["worker_mib"] < 300 and found["parent_mib"] < 200, found


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
def test_a_worker_may_map_no_more_than_its_limit(write_video: Callable[..., Path]) -> None:
    path = write_video()
    with DecodePool(1, 60, max_bytes=64 * MIB) as pool:
        clips = pool.decode((k, path, ONE_FRAME) for k in range(4))
        assert isinstance(next(clips)[1], DecodedClip)
        (pid,) = pool.worker_pids
        (line,) = [
            line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max address")
        ]
        assert 3 * 64 * MIB + 2**30 < int(line.split()[3]) < 3 * 64 * MIB + 3 * 2**30


def test_clips_at_the_limit_are_decoded_and_above_it_not(write_video: Callable[..., Path]) -> None:
    path, request = write_video(), ClipRequest(5, 0.0, None, 1, "pad")
    size = 5 * 96 * 128 * 3
    for decoder in ("auto", "pyav"):
        assert decode_clip(path, request, decoder=decoder, max_bytes=size).frames.nbytes == size
        with pytest.raises(DecodeError, match=r"5 frames of 128x96 is more than clip.max_bytes") as error:
            decode_clip(path, request, decoder=decoder, max_bytes=size - 1)
        assert error.value.reason == "too large"


def test_the_limit_is_no_part_of_the_spec() -> None:
    assert ClipRule(max_bytes=1).as_dict() == ClipRule().as_dict() and "max_bytes" not in ClipRule().as_dict()


def test_clips_that_wait_have_a_limit_in_bytes() -> None:
    room, entered = LookAhead(100, 20), []

    def enter(number: int, count: int) -> None:
        room.let_in(number, count)
        entered.append(number)

    threads = [threading.Thread(target=enter, args=arguments) for arguments in ((1, 60), (2, 60), (0, 500))]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    assert entered == [1, 0]  # 0 is next, however large; 2 finds no room beside 1
    room.took(0)
    time.sleep(0.2)
    assert entered == [1, 0]
    room.took(1)
    for thread in threads:
        thread.join(5)
    assert entered == [1, 0, 2]
    late = threading.Thread(target=enter, args=(9, 101))
    late.start()
    room.close()
    late.join(5)
    assert entered[-1] == 9


def test_clips_that_wait_have_a_limit_in_number() -> None:
    room, entered = LookAhead(10**9, 2), []

    def enter(number: int) -> None:
        room.let_in(number, 1)
        entered.append(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert entered == [1]
    room.took(0)
    for thread in threads:
        thread.join(5)
    assert entered == [1, 2]


def test_all_clips_come_where_each_fills_the_limit(write_video: Callable[..., Path]) -> None:
    path, request = write_video(), ClipRequest(5, 0.0, None, 1, "pad")
    expected = decode_clip(path, request).frames
    with DecodePool(3, 60, max_bytes=expected.nbytes) as pool:
        results = list(pool.decode((k, path, request) for k in range(20)))
    assert [key for key, _ in results] == list(range(20))
    assert all(isinstance(clip, DecodedClip) and np.array_equal(clip.frames, expected) for _, clip in results)


def test_headers_are_read_by_workers_that_may_hang_or_die(
    write_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, pipe, gone = write_video(), tmp_path / "pipe.mp4", tmp_path / "gone.mp4"
    os.mkfifo(pipe)
    for name in ("dies.mp4", "hangs.mp4"):
        (tmp_path / name).write_bytes(good.read_bytes())
    (tmp_path / "sitecustomize.py").write_text(BROKEN_WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    paths = [good, pipe, tmp_path / "dies.mp4", gone, tmp_path / "hangs.mp4", *[good] * 70]
    with DecodePool(2, 3.0) as pool:
        infos = list(pool.probe(paths))
        assert list(pool.probe([])) == []
    reasons = [getattr(info, "reason", None) for info in infos]
    assert reasons[:5] == [None, "not readable", "worker died", "no file", "timed out"] and not any(reasons[5:])
    assert all(isinstance(info, VideoInfo) and info == infos[0] for info in (infos[0], *infos[5:]))


BROKEN_WORKER = """
import os, signal, sys, time
import av

real_open = av.open

def broken_open(file, *arguments, **options):
    if file.endswith("dies.mp4"):
        os.kill(os.getpid(), signal.SIGSEGV)
    while file.endswith("hangs.mp4"):
        time.sleep(1)
    return real_open(file, *arguments, **options)

if "flcache.videos.decode_worker" in " ".join(sys.orig_argv):
    av.open = broken_open
"""
"""As sitecustomize.py: FFmpeg crashes or hangs, by the name of the file."""
