from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from flcache.errors import DataError, DecodeError
from flcache.videos import ClipRule, write_dataset
from flcache.videos.kinetics import Kinetics400

RULE = ClipRule(frames=8, fps=4.0, stride=None, clips_per_video=1, short="pad")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinetics")
    write_dataset(folder, train_videos=4, val_videos=1)
    return folder


def test_an_item_is_frames_mask_times_label_and_path(root: Path) -> None:
    dataset = Kinetics400(root, root / "train.csv", RULE)
    item = dataset[1]
    assert len(dataset) == 4 and dataset.missing == []
    assert item["frames"].shape == (8, 3, 64, 64) and item["frames"].dtype == torch.uint8
    assert item["mask"].all() and item["mask"].dtype == torch.bool
    assert item["timestamps"].tolist() == pytest.approx([1.125 + i / 4 for i in range(8)])
    assert dataset.classes[item["label_index"]] == item["label"] == Path(item["path"]).parent.name


def test_a_short_video_is_padded_to_length_under_the_mask(root: Path) -> None:
    rule = ClipRule(frames=40, fps=8.0, stride=None, clips_per_video=1, short="pad")
    item = Kinetics400(root, root / "train.csv", rule)[0]
    assert item["frames"].shape[0] == 40 and item["mask"].tolist() == [True] * 32 + [False] * 8
    assert (item["frames"][32:] == item["frames"][31]).all()


def test_items_collate_in_a_data_loader(root: Path) -> None:
    (batch,) = DataLoader(Kinetics400(root, root / "train.csv", RULE), batch_size=4)
    assert batch["frames"].shape == (4, 8, 3, 64, 64) and len(batch["label"]) == 4


def test_missing_videos_are_listed_and_fatal_only_beyond_the_fraction(root: Path) -> None:
    csv = root / "with_missing.csv"
    csv.write_text((root / "train.csv").read_text() + "red circle,notdownload,0,4,train,0\n")
    dataset = Kinetics400(root, csv, RULE)
    assert len(dataset) == 4 and dataset.missing == [root / "red circle" / "notdownload_000000_000004.mp4"]
    with pytest.raises(DataError, match=r"1 of 5 videos are missing .*notdownload"):
        Kinetics400(root, csv, RULE, max_missing_fraction=0.1)


def test_headerless_annotations_probe_durations_and_keep_bad_files_as_errors(root: Path) -> None:
    good = next(root.glob("red circle/*.mp4")).relative_to(root)
    (root / "empty.mp4").touch()
    (root / "paths.csv").write_text(f"{good} 1\nempty.mp4 0\n")
    (root / "labels.txt").write_text("0 nothing\n1 red circle\n")
    dataset = Kinetics400(root, root / "paths.csv", RULE, labels=root / "labels.txt")
    assert dataset.classes == ["nothing", "red circle"] and dataset[0]["label_index"] == 1
    assert dataset[0]["timestamps"][0] == pytest.approx(1.125)
    with pytest.raises(DecodeError, match="the file is empty"):
        dataset[1]


def test_a_header_without_an_end_is_left_to_a_process_that_is_ended(
    write_video: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("good.mkv", "endless.mkv"):
        write_video(name)
    endless = tmp_path / "endless.mkv"
    header, cluster, _ = endless.read_bytes().partition(b"\x1f\x43\xb6\x75")
    assert cluster
    endless.write_bytes(header)
    os.truncate(endless, 2**40)  # sparse: the first cluster is searched for in zeros
    (tmp_path / "paths.csv").write_text("good.mkv 0\nendless.mkv 0\n")
    rule, start = ClipRule(frames=4, fps=8.0, clips_per_video=2), time.monotonic()
    dataset = Kinetics400(tmp_path, tmp_path / "paths.csv", rule, probe_timeout_s=1.0)
    assert len(dataset) == 3, "two clips of one, and one of that whose duration is unknown"
    assert time.monotonic() - start < 60


def test_annotated_labels_must_be_in_the_label_file(root: Path) -> None:
    (root / "other.txt").write_text("0 nothing\n")
    with pytest.raises(DataError, match="lacks the label"):
        Kinetics400(root, root / "train.csv", RULE, labels=root / "other.txt")
