from __future__ import annotations

import os
from pathlib import Path

import pytest

from flcache.errors import DataError
from flcache.videos import Video, VideoFolder, read_annotations

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


def written(folder: Path, text: str, name: str = "annotations.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_official_rows_name_files_as_kinetics_does(tmp_path: Path) -> None:
    csv = written(tmp_path, HEADER + '"riding, a bike",-ab_cdefghi,5,15,train,0\n')
    expected = Video("-ab_cdefghi_000005_000015", "riding, a bike/-ab_cdefghi_000005_000015", "riding, a bike", 10.0)
    assert read_annotations(csv) == [expected]


def test_a_test_split_without_labels_has_its_files_in_the_root(tmp_path: Path) -> None:
    csv = written(tmp_path, "youtube_id,time_start,time_end,split\nabc,0,10,test\n")
    assert read_annotations(csv) == [Video("abc_000000_000010", "abc_000000_000010", None, 10.0)]


def test_headerless_paths_may_hold_spaces_and_take_labels_from_a_file(tmp_path: Path) -> None:
    csv = written(tmp_path, "a bike/one two.mp4 1\nplain.mp4 0\n")
    labels = written(tmp_path, "0 arm wrestling\n1 riding a bike\n", "labels.txt")
    videos = read_annotations(csv, labels=labels)
    assert [(video.path, video.label) for video in videos] == [
        ("a bike/one two.mp4", "riding a bike"),
        ("plain.mp4", "arm wrestling"),
    ]
    assert [video.label for video in read_annotations(csv)] == ["1", "0"]
    assert videos[1].video_id == "plain" and videos[1].duration_s is None


def test_different_paths_never_share_an_id(tmp_path: Path) -> None:
    paths = [
        "a/b.mp4",
        "a_b.mp4",
        "a b.mp4",
        "a/b.mkv",
        "a_b.avi",
        "ä/b.mp4",
        "x" * 200 + ".mp4",
        "y" + "x" * 200 + ".mp4",
    ]
    videos = read_annotations(written(tmp_path, "".join(f"{path} 0\n" for path in paths)))
    ids = [video.video_id for video in videos]
    assert len(set(ids)) == len(paths)
    assert all(id_.replace("-", "").replace("_", "").isalnum() and id_.isascii() and len(id_) < 80 for id_ in ids)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (HEADER, "no row"),
        ("label,time_start,time_end,split\na,0,10,train\n", "youtube_id"),
        ("label,name,begin,end\na,b,0,10\n", "youtube_id, time_start, time_end"),
        (HEADER + "a,b,zero,10,train,0\n", ":2: time_start 'zero'"),
        (HEADER + "a,b,0\n", ":2: 3 fields"),
        (HEADER + "a,b,10,0,train,0\n", ":2: needs"),
        (HEADER + "a,b,0,10,train,0\n\na,b,0,10,train,0\n", ":4: a/b_000000_000010 is on line 2"),
        ("one.mp4 0\ntwo.mp4\n", ":2: expected `path index`"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_where(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=r"annotations\.csv") as error:
        read_annotations(written(tmp_path, text))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_missing_and_unreadable_files_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such annotation file"):
        read_annotations(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="folder"):
        read_annotations(tmp_path)
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + b"\xe9,b,0,10,train,0\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_annotations(tmp_path / "latin.csv")
    closed = written(tmp_path, HEADER)
    closed.chmod(0)
    if not os.access(closed, os.R_OK):
        with pytest.raises(DataError, match="permission"):
            read_annotations(closed)


def test_a_label_index_without_a_label_is_an_error(tmp_path: Path) -> None:
    labels = written(tmp_path, "0 arm wrestling\n", "labels.txt")
    with pytest.raises(DataError, match=r":1: the label file has no index 7"):
        read_annotations(written(tmp_path, "one.mp4 7\n"), labels=labels)


def test_files_are_found_by_stem_and_missing_ones_named(tmp_path: Path) -> None:
    (tmp_path / "bike").mkdir()
    for name in ("a_000000_000010.webm", "a_000000_000010.mkv", "a_000000_000010.txt", "b_000000_000010.MP4"):
        (tmp_path / "bike" / name).touch()
    folder = VideoFolder(tmp_path)
    assert folder.find("bike/a_000000_000010") == tmp_path / "bike/a_000000_000010.mkv"
    assert folder.find("bike/b_000000_000010") == tmp_path / "bike/b_000000_000010.MP4"
    assert folder.find("boat/c_000000_000010") is None
    assert folder.expected("boat/c_000000_000010") == tmp_path / "boat/c_000000_000010.mp4"
    assert folder.expected("boat/d.avi") == tmp_path / "boat/d.avi"


def test_real_annotations_find_all_but_the_one_never_downloaded(shared_videos: Path) -> None:
    videos = read_annotations(shared_videos / "annotations" / "train.csv")
    folder = VideoFolder(shared_videos / "train")
    missing = [folder.expected(video.path) for video in videos if folder.find(video.path) is None]
    assert missing == [shared_videos / "train" / "arm wrestling" / "notdownload_000003_000013.mp4"]
    labels = shared_videos / "annotations" / "labels.txt"
    listed = read_annotations(shared_videos / "annotations" / "paths_train.csv", labels=labels)
    assert all(VideoFolder(shared_videos).find(video.path) for video in listed)
