from __future__ import annotations

from pathlib import Path

import numpy as np

from flcache.videos import ClipRequest, VideoFolder, decode_clip, probe, read_annotations, write_dataset
from flcache.videos.synthetic import COLOURS, KEPT_SPEED, LABELS, shape_centres


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


def test_actions_push_the_largest_shape(tmp_path: Path) -> None:
    """Away from the walls its velocity after a frame is what is left of that before, and the push of the frame."""
    write_dataset(tmp_path, train_videos=6, val_videos=0, actions=True)
    request = ClipRequest(32, 0.0, tuple(i / 8 for i in range(32)), None, "drop")
    free = 0
    for index, video in enumerate(read_annotations(tmp_path / "train.csv")):
        path = VideoFolder(tmp_path).find(video.path)
        assert isinstance(path, Path)
        with np.load(path.with_suffix(".npz")) as arrays:
            actions, states = arrays["actions"], arrays["states"]
        assert actions.shape == states.shape == (32, 2) and 0.03 < actions.std() < 0.05
        frames, (rows, columns) = decode_clip(path, request).frames.astype(int), (64 * states).astype(int).T
        colour = COLOURS[LABELS[index].split()[0]]
        assert np.abs(frames[np.arange(32), rows, columns] - colour).max() < 25, video.path
        velocity = np.diff(states, axis=0)
        matches = np.isclose(velocity[1:], KEPT_SPEED * velocity[:-1] + actions[1:-1], atol=1e-6)
        assert matches.mean() > 0.6, "the rest is at a wall"
        free += int(matches.sum())
    assert free > 6 * 30 * 2 * 0.8


def test_videos_with_actions_are_written_once_and_beside_those_without(tmp_path: Path) -> None:
    for actions in (False, True, True):
        write_dataset(tmp_path / "both", train_videos=2, val_videos=1, actions=actions)
    write_dataset(tmp_path / "alone", train_videos=2, val_videos=1, actions=True)
    write_dataset(tmp_path / "none", train_videos=2, val_videos=1)
    both, alone, none = (contents(tmp_path / name) for name in ("both", "alone", "none"))
    assert both == alone | none and len(both) == 6
    files = [sorted((tmp_path / name).rglob("*.npz")) for name in ("both", "alone")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]] and len(files[0]) == 3
