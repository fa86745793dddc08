from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from flcache.errors import DecodeError
from flcache.videos import ClipRequest, DecodedClip, DecodePool, decode_clip
from flcache.videos.pool import LONGEST_RUN

REQUEST = ClipRequest(4, 0.0, (0.0, 0.2, 0.4, 0.6), None, "pad")


@pytest.fixture
def endless(write_video: Callable[..., Path]) -> Path:
    """A video that a decoder never comes to the end of: a sparse terabyte, searched for the next cluster."""
    path = write_video("endless.mkv")
    os.truncate(path, 2**40)
    return path


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_clips_come_in_order_and_equal_those_decoded_here(write_video: Callable[..., Path], tmp_path: Path) -> None:
    path = write_video()
    items = [(k, path if k % 5 else tmp_path / "absent.mp4", REQUEST) for k in range(20)]
    with DecodePool(2, 60) as pool:
        results = list(pool.decode(items))
    assert [key for key, _ in results] == list(range(20))
    expected = decode_clip(path, REQUEST)
    for key, clip in results:
        if key % 5 == 0:
            assert isinstance(clip, DecodeError) and "absent.mp4" in str(clip)
            continue
        assert isinstance(clip, DecodedClip) and clip.decoder == expected.decoder
        assert np.array_equal(clip.frames, expected.frames)
        assert np.array_equal(clip.timestamps, expected.timestamps) and np.array_equal(clip.mask, expected.mask)


def test_items_are_read_no_further_ahead_than_the_workers_need(write_video: Callable[..., Path]) -> None:
    path, read = write_video(), []
    others = [path.with_name(f"{k}.mp4") for k in range(20)]
    for other in others:
        other.hardlink_to(path)

    def items(paths: Iterable[Path]) -> Iterator[tuple[int, Path, ClipRequest]]:
        read.clear()
        for k, path in enumerate(paths):
            read.append(k)
            yield k, path, REQUEST

    with DecodePool(1, 60) as pool:
        clips = pool.decode(items(others))
        for taken in range(5):
            next(clips)
            assert len(read) <= taken + 3
        clips = pool.decode(items([path] * 100))
        for _ in range(5):
            next(clips)
            assert len(read) <= 2 * LONGEST_RUN + 1


def test_a_run_goes_on_after_the_clip_that_fails(write_video: Callable[..., Path]) -> None:
    """A clip beyond the end fails, a worker is killed: the others of the video are as they are alone."""
    path = write_video(times=tuple(range(0, 28800, 24)), size=(32, 32))
    late = ClipRequest(1, 99.0, (99.0,), None, "drop")
    requests = [
        late if k == 3 else ClipRequest(4, k, tuple(k + i / 5 for i in range(4)), None, "pad") for k in range(40)
    ]
    with DecodePool(2, 60) as pool:
        clips = pool.decode((k, path, request) for k, request in enumerate(requests))
        found = [next(clips)[1] for _ in range(6)]
        os.kill(pool.worker_pids[0], signal.SIGKILL)
        found += [clip for _, clip in clips]
    assert len(found) == 40
    for request, clip in zip(requests, found, strict=True):
        if request is late:
            assert isinstance(clip, DecodeError) and clip.reason == "too short"
        else:
            assert isinstance(clip, DecodedClip) and np.array_equal(clip.frames, decode_clip(path, request).frames)


def test_all_workers_decode_one_video_and_few_clips_wait(write_video: Callable[..., Path]) -> None:
    path, workers = write_video(), 3
    with DecodePool(workers, 60) as pool:
        clips = pool.decode((k, path, REQUEST) for k in range(200))
        next(clips)
        wait_until(lambda: len(pool.worker_pids) == workers)
        time.sleep(1)
        waiting = next(cell for cell in clips.gi_frame.f_locals.values() if isinstance(cell, deque) and cell)
        done = sum(asked.result.done() for _, asked in waiting)
        assert LONGEST_RUN < done <= (workers - 1) * LONGEST_RUN + 2 * workers
        assert [key for key, _ in clips] == list(range(1, 200))


def test_what_was_not_begun_when_the_pool_closes_is_not_waited_for(write_video: Callable[..., Path]) -> None:
    path = write_video()
    with DecodePool(1, 60) as pool:
        clips = pool.decode((k, path, REQUEST) for k in range(2 * LONGEST_RUN))
        next(clips)
    with pytest.raises(CancelledError):
        list(clips)


def test_a_hanging_clip_times_out_and_only_it_fails(write_video: Callable[..., Path], endless: Path) -> None:
    path = write_video()
    with DecodePool(1, 1.5) as pool:
        results = dict(pool.decode([(0, path, REQUEST), (1, endless, REQUEST), (2, path, REQUEST)]))
        pids = pool.worker_pids
    assert isinstance(results[0], DecodedClip) and isinstance(results[2], DecodedClip)
    assert str(results[1]) == f"{endless}: timed out after 1.5 s"
    assert not any(alive(pid) for pid in pids)


def test_a_clip_whose_workers_die_twice_fails_and_says_how(write_video: Callable[..., Path], endless: Path) -> None:
    path = write_video()
    with DecodePool(1, 60) as pool:
        clips = pool.decode([(0, path, REQUEST), (1, endless, REQUEST), (2, path, REQUEST)])
        killer = threading.Thread(target=_kill_those_waiting, args=(pool, endless, signal.SIGSEGV, 2))
        killer.start()
        results = dict(clips)
        killer.join()
    assert isinstance(results[0], DecodedClip) and isinstance(results[2], DecodedClip)
    assert str(results[1]) == f"{endless}: decoder process died with signal 11 (SIGSEGV)"


def _kill_those_waiting(pool: DecodePool, endless: Path, number: signal.Signals, times: int) -> None:
    """Send `number` to `times` workers, each when it has the file open."""
    killed: set[int] = set()
    while len(killed) < times:
        for pid in set(pool.worker_pids) - killed:
            if _has_open(pid, endless):
                os.kill(pid, number)
                killed.add(pid)
        time.sleep(0.02)


def _has_open(pid: int, path: Path) -> bool:
    try:
        return any(link.readlink() == path for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it ends, or closes a file, while we look
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_killed_or_stopped_once_costs_no_clip(
    number: signal.Signals, write_video: Callable[..., Path]
) -> None:
    path = write_video()
    with DecodePool(1, 2.0) as pool:
        clips = pool.decode((k, path, REQUEST) for k in range(6))
        first = [next(clips)]
        (victim,) = pool.worker_pids
        os.kill(victim, number)
        results = [*first, *clips]
        assert all(isinstance(clip, DecodedClip) for _, clip in results) and len(results) == 6
        assert victim not in pool.worker_pids
    assert not alive(victim)


def test_workers_end_with_a_parent_that_is_killed(endless: Path) -> None:
    other = endless.with_name("other.mkv")
    other.hardlink_to(endless)
    script = f"""
import sys, threading
from pathlib import Path
from flcache.videos import ClipRequest, DecodePool
pool = DecodePool(2, 600)
items = [(path, Path(path), ClipRequest(1, 0.0, (0.0,), None, "pad")) for path in ({str(endless)!r}, {str(other)!r})]
threading.Thread(target=lambda: list(pool.decode(items)), daemon=True).start()
while len(pool.worker_pids) < 2:
    pass
print(*pool.worker_pids, flush=True)
threading.Event().wait()
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
        parent.kill()
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_leaving_early_stops_the_workers_at_once(endless: Path) -> None:
    start = time.monotonic()
    with DecodePool(2, 600) as pool, pytest.raises(KeyboardInterrupt):
        timer = threading.Timer(1.0, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        timer.start()
        list(pool.decode([(0, endless, REQUEST)]))
    assert time.monotonic() - start < 10 and not pool.worker_pids


def test_a_worker_never_imports_torch() -> None:
    script = "import sys, flcache.videos.decode_worker; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_video_that_decord_fails_at_ends_no_worker(write_video: Callable[..., Path]) -> None:
    """decord's FFmpeg logs from a thread of its own until its reader is gone."""
    path = write_video(size=(32, 48))  # whose rows decord stores wider than it says
    with DecodePool(1, 60) as pool:
        clips = pool.decode((k, path, REQUEST) for k in range(100))
        next(clips)
        pids = pool.worker_pids
        assert all(isinstance(clip, DecodedClip) and clip.decoder == "pyav" for _, clip in clips)
        assert pool.worker_pids == pids
