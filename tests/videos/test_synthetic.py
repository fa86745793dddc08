from __future__ import annotations

from pathlib import Path

import numpy as np

from flcache.videos import ClipRequest, VideoFolder, decode_clip, probe, read_annotations, write_dataset
from flcache.videos.synthetic import COLOURS, LABELS, shape_centres


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.mp4"))}


def test_a_larger_set_starts_with_the_files_of_a_smaller_one(tmp_path: Path) -> None:
    write_dataset(tmp_path / "small", train_videos=3, val_videos=2)
    write_dataset(tmp_path / "large", train_videos=5, val_videos=3)
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    assert len(small) == 5 and len(large) == 8 and len(set(large.values())) == 8
    assert small.items() <= large.items()


def test_a_second_run_keeps_what_is_there(tmp_path: Path) -> None:
    write_dataset(tmp_path, train_videos=2, val_videos=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    write_dataset(tmp_path, train_videos=2, val_videos=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")} == before
    write_dataset(tmp_path, train_videos=2, val_videos=1, seed=1)
    assert len(contents(tmp_path)) == 6  # another seed has files of its own


def test_annotated_videos_are_found_and_move(tmp_path: Path) -> None:
    write_dataset(tmp_path, train_videos=4, val_videos=2)
    request = ClipRequest(32, 0.0, tuple(i / 8 for i in range(32)), None, "drop")
    for split, count in (("train", 4), ("val", 2)):
        videos = read_annotations(tmp_path / f"{split}.csv")
        assert len(videos) == count
        for video in videos:
            path = VideoFolder(tmp_path).find(video.path)
            assert path is not None and probe(path).duration_s == video.duration_s == 4.0
            frames = decode_clip(path, request).frames.astype(int)  # (32, 64, 64, 3)
            assert frames.shape == (32, 64, 64, 3)
            assert np.abs(np.diff(frames, axis=0)).max(axis=(1, 2, 3)).min() > 50


def test_the_largest_shape_is_where_its_centre_is_said_to_be(tmp_path: Path) -> None:
    """In decoded frames, which lossy compression changed a little; at every frame of a video of every label."""
    write_dataset(tmp_path, train_videos=18, val_videos=1)
    request = ClipRequest(32, 0.0, tuple(i / 8 for i in range(32)), None, "drop")
    for split, count in (("train", 18), ("val", 1)):
        for index, video in enumerate(read_annotations(tmp_path / f"{split}.csv")):
            path = VideoFolder(tmp_path).find(video.path)
            assert path is not None
            frames = decode_clip(path, request).frames.astype(int)
            rows, columns = shape_centres(split, index).astype(int).T
            colour = COLOURS[LABELS[index].split()[0]]
            assert np.abs(frames[np.arange(32), rows, columns] - colour).max() < 25, video.path
        assert index == count - 1
