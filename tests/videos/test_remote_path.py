"""Lists and videos at URLs: found by a listing, read from copies, and as whole or as broken as local ones."""

from __future__ import annotations

import shutil
import socket
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcache.errors import CacheError, DataError, DecodeError
from flcache.remote import DiskCache, Entry, RemoteFiles
from flcache.videos import ClipRequest, DecodedClip, DecodePool, VideoFolder, decode_clip, fetcher, read_annotations
from flcache.videos.remote_path import Place, RemotePath, look_again, place
from flcache.videos.video_file import VideoFile

REQUEST = ClipRequest(4, 0.0, (0.0, 0.2, 0.4, 0.6), None, "pad")
NAMES = ("train/jump/a.mp4", "train/jump/B.MP4", "train/walk/c.webm", "train/.hidden/d.mp4", "notes.txt", "val/e.mp4")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder that is also at a URL."""
    for name in NAMES:
        (path := tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "there"


@pytest.fixture
def disk(tmp_path: Path) -> DiskCache:
    look_again()
    return DiskCache(tmp_path / "copies", 2**24)


def at_url(path: Path, disk: DiskCache, root: Place | None = None) -> RemotePath:
    found = place(f"file://{path}", disk, root)
    assert isinstance(found, RemotePath)
    return found


def decoded(*files: VideoFile) -> list[DecodedClip | DecodeError]:
    with DecodePool(1, 60.0) as pool:
        return [clip for _, clip in pool.decode((None, file, REQUEST) for file in files)]


def test_a_listing_answers_what_a_folder_does(there: Path, disk: DiskCache) -> None:
    root = at_url(there, disk)
    for below in ("", "train", "train/jump", "train/jump/a.mp4", "notes.txt", "nowhere", "train/../val"):
        near, far = (there / below, root / below) if below else (there, root)
        assert (far.is_dir(), far.is_file(), far.name) == (near.is_dir(), near.is_file(), near.resolve().name)
        assert (str(far), far.suffix) == (f"file://{near.resolve()}", near.suffix)
        assert str(far.parent) == f"file://{near.resolve().parent}"
        names = [path.name for path in near.iterdir() if path.is_file()] if near.is_dir() else []
        assert sorted(far.names()) == sorted(names)
    assert (root / "notes.txt").read_bytes() == b"x" and (root / "notes.txt").num_bytes == 1
    for path in (root / "train/walk.mp4", root / "../outside"):
        with pytest.raises(FileNotFoundError):
            path.listed()
    assert at_url(there / "val" / "e.mp4", disk, root) == root / "val/e.mp4"


def test_the_bucket_is_listed_once(there: Path, disk: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("entry", "entries"):
        whole: Any = getattr(RemoteFiles, name)

        def seen(files: RemoteFiles, *arguments: Any, whole: Any = whole) -> Any:
            asked.append(whole.__name__)
            return whole(files, *arguments)

        monkeypatch.setattr(RemoteFiles, name, seen)
    root = at_url(there, disk)
    videos = read_annotations(root / "train", root=root)
    assert [(video.path, video.label) for video in videos] == [
        ("train/jump/B.MP4", "jump"),
        ("train/jump/a.mp4", "jump"),
        ("train/walk/c.webm", "walk"),
    ]
    folder = VideoFolder(root, [video.path for video in videos])
    assert [str(folder.find(video.path)) for video in videos] == [f"{root}/{video.path}" for video in videos]
    assert str(VideoFolder(root).find("train/jump/b")) == f"{root}/train/jump/B.MP4" and folder.find("train/d") is None
    assert str(folder.expected("train/d")) == f"{root}/train/d.mp4"
    assert asked == ["entry", "entries"]


def test_frames_are_those_of_the_local_file(write_video: Callable[..., Path], disk: DiskCache) -> None:
    path = write_video()
    root = at_url(path.parent, disk)
    file, missing = VideoFolder(root).find("video.mp4"), VideoFolder(root).expected("gone.mp4")
    assert isinstance(file, RemotePath)
    clip, failure, again = decoded(file, missing, file)
    expected = decode_clip(path, REQUEST)
    for found in (clip, again):
        assert isinstance(found, DecodedClip) and np.array_equal(found.frames, expected.frames)
    assert isinstance(failure, DecodeError) and failure.reason == "no file"
    assert str(failure) == f"{root}/gone.mp4: no such file"
    with DecodePool(1, 60.0) as pool:
        here, there, gone = pool.probe([path, file, missing])
    assert here == there and isinstance(gone, DecodeError) and gone.reason == "no file"


def test_errors_name_the_url(tmp_path: Path, disk: DiskCache) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    (failure,) = decoded(at_url(tmp_path, disk) / "bad.mp4")
    assert isinstance(failure, DecodeError) and failure.reason == "cut off"
    assert str(failure).startswith(f"file://{tmp_path}/bad.mp4: ") and str(disk.folder) not in str(failure)


@pytest.mark.parametrize("size", [(32, 48), (192, 256)])
def test_a_file_that_is_replaced_is_read_as_it_is_now(
    write_video: Callable[..., Path], disk: DiskCache, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """By a smaller one, which ends early, or by a larger one, of which as much as was listed would be no video."""
    monkeypatch.setattr("flcache.remote.files.FIRST_PAUSE_S", 0.001)
    path = write_video()
    listed = (at_url(path.parent, disk) / "video.mp4").listed()
    shutil.move(write_video("other.mp4", size=size), path)
    (clip,) = decoded(listed)
    assert isinstance(clip, DecodedClip) and np.array_equal(clip.frames, decode_clip(path, REQUEST).frames)
    path.unlink()
    (failure,) = decoded(listed)
    assert isinstance(failure, DecodeError) and failure.reason == "no file"


def test_a_download_that_hangs_fails_by_itself(
    write_video: Callable[..., Path], disk: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "PATIENCE_S", 1.0)
    path = write_video()
    good = at_url(path.parent, disk) / "video.mp4"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the request, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hung = RemotePath(url, "video.mp4", disk, Entry(1000, ""))
        started_s = time.monotonic()
        clips = decoded(good, hung, good)
        assert time.monotonic() - started_s < 30
    assert isinstance(clips[0], DecodedClip) and isinstance(clips[2], DecodedClip)
    assert isinstance(clips[1], DecodeError) and clips[1].reason == "timed out"
    assert str(clips[1]) == f"{url}/video.mp4: the download has not ended within 1 s"


def test_a_pool_that_is_closed_waits_for_no_download(disk: DiskCache) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hung = RemotePath(f"http://127.0.0.1:{silent.getsockname()[1]}", "video.mp4", disk, Entry(1000, ""))
        pool = DecodePool(1, 60.0)
        with ThreadPoolExecutor(1) as thread:
            probing = thread.submit(list, pool.probe([hung]))
            silent.settimeout(20)
            silent.accept()[0].close()
            started_s = time.monotonic()
            pool.close()
            with pytest.raises((CancelledError, RuntimeError)):  # closed while it waits, or just before
                probing.result(20)
        assert time.monotonic() - started_s < 5


def test_tars_need_room_for_all_of_them(tmp_path: Path, disk: DiskCache) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x" * 1000)
    for name in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            tar.add(tmp_path / "a.mp4", "a.mp4")
    (tmp_path / "a.mp4").unlink()
    sizes = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert len(read_annotations(at_url(tmp_path, disk))) == 2
    look_again()
    with pytest.raises(DataError, match=f"set cache.local_bytes to {sizes} or more"):
        read_annotations(at_url(tmp_path, DiskCache(tmp_path / "small", sizes - 1)))
    with pytest.raises(DataError, match=r"2\.tar: no such tar"):
        read_annotations(at_url(tmp_path / "{0..2}.tar", disk))


def test_a_video_beyond_the_limit_ends_the_run_with_the_mend(write_video: Callable[..., Path], tmp_path: Path) -> None:
    path = write_video()
    with pytest.raises(CacheError, match=f"set cache.local_bytes to {path.stat().st_size} or more"):
        decoded(at_url(path.parent, DiskCache(tmp_path / "small", 100)) / "video.mp4")
