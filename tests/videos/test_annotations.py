from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from flcache.errors import DataError
from flcache.videos import Video, VideoFolder, read_annotations, read_labels

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
        (HEADER + "a,b,0,10,train,0\n\na,b,0,10,train,0\n", ":4: 'a/b_000000_000010' is on line 2"),
        ("one.mp4 0\ntwo.mp4\n", ":2: expected `path index`"),
        ("a.mp4 ²\n", ":1: expected `path index`"),
        ("a.mp4 " + "1" * 5000 + "\n", ":1: expected `path index`"),
        (". 1\n", ":1: expected `path index`"),
        ("/ 1\n", ":1: expected `path index`"),
        (".. 1\n", ":1: expected `path index`"),
        ("a.mp4\t1\n", ":1: expected `path index` separated by a space, not by a tab"),
        ("a.mp4;1\n", "not by a semicolon"),
        (HEADER.replace(",", ";") + "a;b;0;10;train;0\n", ":1: the columns are separated by a semicolon"),
        (HEADER.replace(",", "\t") + "a\tb\t0\t10\ttrain\t0\n", ":1: the columns are separated by a tab"),
        (HEADER + '"a\0",b,0,10,train,0\n', ":2: 'a\\x00/b_000000_000010' cannot be the path of a file"),
        (HEADER + "a" * 131_073 + ",b,0,10,train,0\n", ":2: not a row of a CSV: field larger than field limit"),
        (HEADER + "a" * 256 + ",b,0,10,train,0\n", "cannot be the path of a file"),
        (HEADER + "a," + "b" * 250 + ",0,10,train,0\n", "cannot be the path of a file"),
        (HEADER + '"a,b,0,10,train,0\n', ":2: not a row of a CSV: unexpected end of data"),
        (HEADER + "..,b,0,10,train,0\n", ":2: '../b_000000_000010' leads out of dataset.root"),
        ("a/../../b.mp4 1\n", ":1: 'a/../../b.mp4' leads out of dataset.root"),
        ("/data/b.mp4 1\n", ":1: '/data/b.mp4' leads out of dataset.root"),
        ("a.mp4 1\n./a.mp4 1\n", ":2: './a.mp4' is on line 1 already"),
        ("a/b.mp4 1\na//c/../b.mp4 1\n", "is on line 1 already"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_where(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=r"annotations\.csv") as error:
        read_annotations(written(tmp_path, text))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_paths_may_lead_out_of_the_root_only_where_that_is_allowed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "videos" / "a.mp4", tmp_path / "elsewhere" / "a.mp4"
    csv = written(tmp_path, f"{inside} 1\n{outside} 1\n../b.mp4 1\n")
    with pytest.raises(DataError, match=r":2: .* leads out of dataset\.root.*dataset\.allow_outside=true"):
        read_annotations(csv, root=tmp_path / "videos")
    paths = [video.path for video in read_annotations(csv, root=tmp_path / "videos", allow_outside=True)]
    assert paths == [str(inside), str(outside), "../b.mp4"]


def test_only_newlines_end_a_row_and_quoted_ones_do_not(tmp_path: Path) -> None:
    labels = ["line\u2028separator", "vertical\vtab", "next\x85line", "form\ffeed", "quoted\nnewline"]
    rows = "".join(f'"{label}",id{number},0,10,train,0\n' for number, label in enumerate(labels))
    videos = read_annotations(written(tmp_path, HEADER + rows))
    assert [video.label for video in videos] == labels
    listed = read_annotations(written(tmp_path, "a\u2028b.mp4 1\r\nc\vd.mp4 2\r\n"))
    assert [video.path for video in listed] == ["a\u2028b.mp4", "c\vd.mp4"]


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


def touched(folder: Path, *names: str) -> VideoFolder:
    for name in names:
        (folder / name).touch()
    return VideoFolder(folder)


def test_names_that_differ_in_case_are_different_videos(tmp_path: Path) -> None:
    folder = touched(tmp_path, "A.mp4", "a.mp4", "B.mkv")
    assert [folder.find(name) for name in ("A", "a", "a.mp4")] == [
        tmp_path / name for name in ("A.mp4", "a.mp4", "a.mp4")
    ]
    assert folder.other_case == {}
    assert folder.find("b") == tmp_path / "B.mkv" and folder.other_case == {"b": tmp_path / "B.mkv"}


def test_another_case_is_no_match_where_several_files_have_it_or_another_video_is_it(tmp_path: Path) -> None:
    folder = touched(tmp_path, "AB.mp4", "Ab.mkv", "C.mp4")
    assert folder.find("ab") is None
    folder = VideoFolder(tmp_path, ["C", "c"])
    assert folder.find("c") is None and folder.find("C") == tmp_path / "C.mp4" and folder.other_case == {}


def test_folders_and_pipes_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "x1_000000_000004").mkdir()
    os.mkfifo(tmp_path / "x1_000000_000004.mkv")
    folder = touched(tmp_path, "x1_000000_000004.mp4")
    assert folder.find("x1_000000_000004") == tmp_path / "x1_000000_000004.mp4"
    (tmp_path / "link.mp4").symlink_to(tmp_path / "x1_000000_000004.mp4")
    assert VideoFolder(tmp_path).find("link") == tmp_path / "link.mp4"


MUTATED = {
    "kinetics": HEADER + '"riding, a bike",-ab_cdefghi,5,15,train,0\nb,c,0,10,train,1\n',
    "listed": "a bike/one two.mp4 1\nplain.mp4 0\nä/b.mkv 12\n",
    "labels": "0 arm wrestling\n1 riding a bike\n12 c\n",
}
PIECES = [
    b"\0",
    b'"',
    b",",
    b"\n",
    b"\r",
    b" ",
    b"/",
    b"..",
    b"\t",
    b";",
    b"\xe2\x80\xa8",
    b"\xff",
    b"\xc2\xb2",
    b"9" * 400,
]
PIECES += [b"nan", b"inf", b"1e999", b"-", b"~", b"a" * 300, b'"\n"', b"\xef\xbb\xbf"]


@pytest.mark.parametrize("form", MUTATED)
def test_ten_thousand_mutations_are_read_or_refused_in_one_line(tmp_path: Path, form: str) -> None:
    rng, original, path = random.Random(form), MUTATED[form].encode(), tmp_path / "fuzzed"
    folder, refused = VideoFolder(tmp_path), 0
    for _ in range(10_000):
        content = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            start = rng.randint(0, len(content))
            content[start : start + rng.randint(0, 3)] = rng.choice(PIECES) * rng.choice((1, 1, 1, 3))
        path.write_bytes(content)
        try:
            if form == "labels":
                assert read_labels(path)
            else:
                assert [folder.find(video.path) for video in read_annotations(path, root=tmp_path)]
        except DataError as error:
            refused += 1
            assert "\n" not in str(error) and "\r" not in str(error) and len(str(error)) < 1000
    assert 0 < refused < 10_000


def test_real_annotations_find_all_but_the_one_never_downloaded(shared_videos: Path) -> None:
    videos = read_annotations(shared_videos / "annotations" / "train.csv")
    folder = VideoFolder(shared_videos / "train")
    missing = [folder.expected(video.path) for video in videos if folder.find(video.path) is None]
    assert missing == [shared_videos / "train" / "arm wrestling" / "notdownload_000003_000013.mp4"]
    labels = shared_videos / "annotations" / "labels.txt"
    listed = read_annotations(shared_videos / "annotations" / "paths_train.csv", labels=labels)
    assert all(VideoFolder(shared_videos).find(video.path) for video in listed)
