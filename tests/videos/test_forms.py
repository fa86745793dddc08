"""Lists of videos in every form, right and wrong; and videos inside a tar, which decode as the files do."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from flcache.errors import DataError, DecodeError
from flcache.videos import (
    ClipRequest,
    ClipRule,
    DatasetOptions,
    DecodePool,
    VideoFolder,
    decode_clip,
    plan_clips,
    probe,
)
from flcache.videos.annotations import is_held_out, list_digest, list_videos, read_annotations, split_lists
from flcache.videos.container import CONTAINERS
from flcache.videos.decoders import DECODERS, OpenedVideo
from flcache.videos.forms.listed import without_extension
from flcache.videos.planned import decode_planned, planned_clips
from flcache.videos.synthetic import draw_frames, encode_mp4
from flcache.videos.video_file import TarMember, open_bytes

WriteVideo = Callable[..., Path]
SOMETHING = [
    {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {"id": "42326", "label": "poking a hole", "template": "Poking a hole into [something]", "placeholders": ["dough"]},
]
CLASSES = {"Holding something next to something": "0", "Poking a hole into something": "1"}


def written(folder: Path, text: str, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a video")
    return folder


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    """A tar as video2dataset writes it: `webdataset.TarWriter`, members named by key."""
    with webdataset.TarWriter(str(path)) as shard:
        for key, members in samples.items():
            shard.write({"__key__": key, **members})
    return path


def tiny(number: int) -> bytes:
    return encode_mp4(draw_frames(number, frames=16, size=32, fps=8), 8)


def refused(path: Path, *words: str, **options: Path) -> None:
    """In any of these `words`."""
    with pytest.raises(DataError) as error:
        read_annotations(path, root=path if path.is_dir() else path.parent, **options)
    assert any(said in str(error.value) for said in words) and str(path.parent) in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


# A CSV with a header


def test_a_header_names_the_columns_and_others_are_ignored(tmp_path: Path) -> None:
    csv = written(tmp_path, 'size,label,path\n3,"a, b",one two.mp4\n4,,x/c.mkv\n')
    videos = read_annotations(csv, root=tmp_path)
    assert [(video.path, video.label) for video in videos] == [("one two.mp4", "a, b"), ("x/c.mkv", None)]
    assert all(video.duration_s is None and video.start_s is None for video in videos)
    assert [video.path for video in read_annotations(written(tmp_path, "path\na.mp4\n"))] == ["a.mp4"]


def test_segments_of_one_file_are_videos_of_their_own(tmp_path: Path) -> None:
    csv = written(tmp_path, "path,start,end\na.mp4,0,2\na.mp4,2,5.5\na.mp4,7,\nb.mp4,,\n")
    videos = read_annotations(csv)
    assert [(video.start_s, video.end_s, video.duration_s) for video in videos] == [
        (0, 2, 2),
        (2, 5.5, 3.5),
        (7, None, None),
        (None, None, None),
    ]
    assert len({video.video_id for video in videos}) == 4
    plan = plan_clips(videos, ClipRule(frames=4, fps=2.0), {videos[2].video_id: 9.0, videos[3].video_id: 1.0})
    assert plan["start_s"].tolist() == pytest.approx([0, 3.0, 7.0, 0])
    assert plan["end_s"].tolist()[:2] == [2, 5.5] and plan["end_s"].isna().tolist() == [False, False, True, True]


def test_frames_after_a_segment_are_padding(write_video: WriteVideo) -> None:
    path = write_video()  # 30 frames at 25 a second
    whole = decode_clip(path, ClipRequest(10, 0.0, tuple(i / 10 for i in range(10)), None, "pad"))
    for decoder in DECODERS:
        request = ClipRequest(10, 0.0, tuple(i / 10 for i in range(10)), None, "pad", end_s=0.5)
        clip = decode_clip(path, request, decoder=decoder)
        assert clip.mask.tolist() == [True] * 5 + [False] * 5
        np.testing.assert_array_equal(clip.frames[:5], whole.frames[:5])
        last = decode_clip(path, ClipRequest(1, 0.48, (0.48,), None, "pad")).frames[0]
        assert all((frame == last).all() for frame in clip.frames[5:])
    strided = decode_clip(path, ClipRequest(10, 0.0, None, 2, "pad", end_s=0.4))
    assert strided.mask.tolist() == [True] * 5 + [False] * 5
    with pytest.raises(DecodeError, match="shorter than the clip"):
        decode_clip(path, ClipRequest(4, 0.0, (0.0, 0.2, 0.4, 0.6), None, "drop", end_s=0.5))


def test_one_file_with_a_column_of_splits_serves_all(tmp_path: Path) -> None:
    csv = written(tmp_path, "path,split\na.mp4,train\nb.mp4,validation\nc.mp4,test\nd.mp4,Train\n")
    dataset = DatasetOptions(root=str(tmp_path), train=str(csv))
    assert split_lists(dataset) == {"train": csv, "val": csv}
    assert [video.path for video in list_videos(csv, dataset, "train")] == ["a.mp4", "d.mp4"]
    assert [video.path for video in list_videos(csv, dataset, "val")] == ["b.mp4"]
    only = written(tmp_path, "path,split\na.mp4,train\n", "only.csv")
    assert split_lists(DatasetOptions(train=str(only))) == {"train": only}
    with pytest.raises(DataError, match=r"no row of the split val; its column `split` has 'train'"):
        list_videos(only, dataset, "val")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\n", "no row"),
        ("path;label\na;b\n", ":1: the columns are separated by a semicolon"),
        ("path,label\na.mp4\n", ":2: 1 fields"),
        ("path\n..\n", ":2: '..' is no path"),
        ("path\n../a.mp4\n", ":2: '../a.mp4' leads out of dataset.root"),
        ("path,start\na.mp4,soon\n", ":2: start 'soon' must be seconds"),
        ("path,start\na.mp4,-1\n", ":2: start '-1' must be seconds"),
        ("path,end\na.mp4,inf\n", ":2: end 'inf' must be seconds"),
        ("path,start,end\na.mp4,3,3\n", ":2: start 3.0 is not before end 3.0"),
        ("path,start,end\na.mp4,1,3\na.mp4,1,3\n", ":3: 'a.mp4' is on line 2 already"),
    ],
)
def test_a_wrong_csv_is_one_line_that_says_where(tmp_path: Path, text: str, words: str) -> None:
    refused(written(tmp_path, text), words)


# A folder


def test_a_folder_is_a_list_of_the_videos_below_it(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.MKV", "notes.txt", ".hidden.mp4", ".git/c.mp4", "walk/x.mp4", "walk/deep/y.webm")
    (tmp_path / "walk" / "round").symlink_to(tmp_path)
    (tmp_path / "walk" / "deep" / "back").symlink_to(tmp_path / "walk")
    (tmp_path / "linked").symlink_to(touch(tmp_path.with_name(f"{tmp_path.name}-elsewhere"), "z.mp4", "more/w.mp4"))
    (tmp_path / "linked" / "more" / "back").symlink_to(tmp_path / "linked")
    (tmp_path / "a folder.mp4").mkdir()
    videos = read_annotations(tmp_path, root=tmp_path)
    labels = {
        "linked/more/w.mp4": "linked",
        "linked/z.mp4": "linked",
        "a.MKV": None,
        "b.mp4": None,
        "walk/deep/y.webm": "walk",
        "walk/x.mp4": "walk",
    }
    assert {video.path: video.label for video in videos} == labels
    assert [video.path for video in videos] == sorted(labels)
    folder = VideoFolder(tmp_path)
    assert all(folder.find(video.path) == tmp_path / video.path for video in videos)


def test_folders_train_and_val_are_the_splits(tmp_path: Path) -> None:
    root = touch(tmp_path / "videos", "train/0.mp4", "val/0.mp4", "val/1.mp4")
    dataset = DatasetOptions(root=str(root))
    lists = split_lists(dataset)
    assert lists == {"train": root / "train", "val": root / "val"}
    train, val = (list_videos(lists[split], dataset, split) for split in lists)
    assert [video.path for video in (*train, *val)] == ["train/0.mp4", "val/0.mp4", "val/1.mp4"]
    assert len({video.video_id for video in (*train, *val)}) == 3 and train[0].label is None
    assert split_lists(DatasetOptions(root=str(root / "train"))) == {"train": root / "train"}
    assert split_lists(DatasetOptions()) == {}


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.25, 5), (1.0, 19)])
def test_a_part_of_the_videos_is_held_out_where_none_are_for_validation(
    fraction: float, count: int, tmp_path: Path
) -> None:
    """Pieces of one file stay together, and which are held out depends on the names of the files alone."""
    csv = written(tmp_path, "path,start,end\n" + "".join(f"{n}.mp4,{s},{s + 1}\n" for n in range(20) for s in (0, 1)))
    dataset = DatasetOptions(root=str(tmp_path), train=str(csv), val_fraction=fraction)
    assert split_lists(dataset) == {"train": csv, "val": csv} and is_held_out(dataset)
    train, val = (list_videos(csv, dataset, split) for split in ("train", "val"))
    files = [{video.path for video in videos} for videos in (train, val)]
    assert not files[0] & files[1] and len(files[1]) == count and len(train) + len(val) == 40
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    assert {video.path for video in list_videos(csv, dataset, "val")} == files[1]


def test_nothing_is_held_out_where_validation_videos_are_named(tmp_path: Path) -> None:
    root = touch(tmp_path / "videos", "train/0.mp4", "val/0.mp4")
    dataset = DatasetOptions(root=str(root), val_fraction=0.5)
    assert not is_held_out(dataset)
    assert split_lists(dataset) == {"train": root / "train", "val": root / "val"}


def test_the_digest_of_a_folder_is_of_its_names(tmp_path: Path) -> None:
    dataset = DatasetOptions(root=str(touch(tmp_path, "x/a.mp4", "x/b.mp4")))
    before = list_digest(tmp_path, dataset)
    (tmp_path / "x" / "a.mp4").write_bytes(b"mended")
    assert list_digest(tmp_path, dataset) == before
    assert list_digest(tmp_path / "x", dataset) != before
    touch(tmp_path, "x/c.mp4")
    assert list_digest(tmp_path, dataset) != before


def test_wrong_folders_are_one_line(tmp_path: Path) -> None:
    refused(touch(tmp_path / "empty", "notes.txt"), "no video in this folder")
    refused(touch(tmp_path / "mixed", "a.mp4", "0.tar"), "tars beside videos (a.mp4)")
    name = "caf\udce9.mp4"
    refused(touch(tmp_path / "latin", name), "is not UTF-8; rename that file")


# Something-Something v2


def test_something_something_has_templates_for_labels(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(SOMETHING), "train.json")
    labels = written(tmp_path, json.dumps(CLASSES), "labels.json")
    videos = read_annotations(path, labels=labels)
    assert [(video.video_id, video.path, video.label) for video in videos] == [
        ("78687", "78687", "Holding something next to something"),
        ("42326", "42326", "Poking a hole into something"),
    ]
    folder = VideoFolder(touch(tmp_path, "78687.webm"))
    assert folder.find(videos[0].path) == tmp_path / "78687.webm" and folder.find(videos[1].path) is None
    assert read_annotations(written(tmp_path, '[{"id": "7"}]', "test.json"))[0].label is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ":1: not JSON"),
        ('[\n{"id": "1",\n]', ":3: not JSON"),
        ("[" * 100_000, "not JSON that can be read"),
        ("{}", "not a list of"),
        ("[]", "not a list of"),
        ('["a"]', 'entry 1: needs an "id"'),
        ('[{"id": "../../etc/passwd"}]', 'entry 1: needs an "id"'),
        ('[{"id": "1", "template": 3}]', 'entry 1: needs an "id"'),
        ('[{"id": "1"}, {"id": 1}]', ":2: '1' is on line 1 already"),
        ('[{"id": "1", "template": "Eating [something]"}]', "has no class 'Eating something'"),
    ],
)
def test_wrong_json_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    refused(written(tmp_path, text, "train.json"), words, labels=written(tmp_path, json.dumps(CLASSES), "labels.json"))


@pytest.mark.parametrize("text", ["{}", "[]", '{"a": "x"}', '{"a": "1", "b": "1"}', "{"])
def test_wrong_classes_are_one_line(tmp_path: Path, text: str) -> None:
    labels = written(tmp_path, text, "labels.json")
    with pytest.raises(DataError, match=r"labels\.json") as error:
        read_annotations(written(tmp_path, json.dumps(SOMETHING), "train.json"), labels=labels)
    assert "\n" not in str(error.value)


# Tars


def fields(**given: object) -> bytes:
    """The JSON that video2dataset writes beside a video, shortened."""
    return json.dumps({"status": "success", "caption": "a shape", "error_message": None, **given}, indent=4).encode()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder as video2dataset leaves it: `00000.tar` to `00002.tar`, each with a parquet and statistics beside it."""
    for shard in range(3):
        keys = [f"{shard:05d}{number:04d}" for number in range(2)]
        samples = {key: {"mp4": tiny(int(key)), "txt": b"a shape", "json": fields(key=key)} for key in keys}
        write_shard(tmp_path / f"{shard:05d}.tar", samples)
        touch(tmp_path, f"{shard:05d}.parquet", f"{shard:05d}_stats.json")
    return tmp_path


def test_braces_name_the_tars_of_a_list(shards: Path) -> None:
    videos = read_annotations(shards / "{00000..00001}.tar", root=shards)
    ids = ["000000000", "000000001", "000010000", "000010001"]
    assert [(video.video_id, video.path) for video in videos] == [(key, f"{key[:5]}.tar/{key}.mp4") for key in ids]
    assert {video.label for video in videos} == {None}
    assert len(read_annotations(shards, root=shards)) == 6
    assert split_lists(DatasetOptions(root=str(shards))) == {"train": shards}
    below = read_annotations(shards / "00002.tar", root=shards.parent)
    assert [video.path for video in below] == [f"{shards.name}/00002.tar/00002000{number}.mp4" for number in (0, 1)]


def test_labels_are_members_beside_the_video(tmp_path: Path) -> None:
    samples = {
        "a": {"mp4": b"x", "cls": b"1"},
        "b/c": {"mp4": b"x", "json": fields(label="running")},
        "d": {"json": fields(label=3), "webm": b"x"},
        "e": {"txt": b"a caption"},
    }
    tar, labels = write_shard(tmp_path / "0.tar", samples), written(tmp_path, "0 jump\n1 walk\n", "labels.txt")
    videos = read_annotations(tar, labels=labels)
    found = [(video.path.partition(".tar/")[2], video.label) for video in videos]
    assert found == [("a.mp4", "walk"), ("b/c.mp4", "running"), ("d.webm", "3")]
    assert read_annotations(tar)[0].label == "1"
    refused(tar, "0.tar/a.cls: the label file has no index '1'", labels=written(tmp_path, "0 jump\n", "labels.txt"))


def test_videos_in_a_tar_decode_as_the_files_do(shards: Path, tmp_path: Path) -> None:
    member = VideoFolder(shards).find("00001.tar/000010001.mp4")
    assert isinstance(member, TarMember) and str(member).endswith("00001.tar/000010001.mp4")
    file = touch(tmp_path, "files/alone.mp4") / "files" / "alone.mp4"
    file.write_bytes(tiny(10001))
    with open_bytes(member) as stream:
        assert stream.read() == file.read_bytes()
    assert probe(member) == probe(file)
    request = ClipRequest(8, 0.0, tuple(i / 5 for i in range(8)), None, "pad")
    for decoder in DECODERS:
        inside, alone = (decode_clip(path, request, decoder=decoder) for path in (member, file))
        assert inside.decoder == alone.decoder == ("pyav" if decoder == "pyav" else "decord")
        np.testing.assert_array_equal(inside.frames, alone.frames)
        np.testing.assert_array_equal(inside.timestamps, alone.timestamps)
    videos = read_annotations(shards, root=shards)
    with DecodePool(1, 60.0) as pool:
        planned = planned_clips(plan_clips(videos, ClipRule(frames=4), None))
        decoded = list(decode_planned(pool, VideoFolder(shards), planned))
        assert [clip.video for clip, _ in decoded] == [video.path for video in videos]
        assert all(not isinstance(found, DecodeError) for _, found in decoded)
        (info,) = pool.probe([member])
    assert info == probe(file)


def test_odd_and_bad_videos_in_a_tar_end_as_the_files_do(shared_videos: Path, tmp_path: Path) -> None:
    files = sorted(path for kind in ("odd", "bad") for path in (shared_videos / kind).iterdir())
    tar = tmp_path / "all.tar"
    with tarfile.open(tar, "w") as archive:
        for file in files:
            archive.add(file, file.name)
    folder, good = VideoFolder(tmp_path), 0
    request = ClipRequest(3, 0.0, (0.0, 0.2, 0.4), None, "pad")
    for file in files:
        member = folder.find(f"all.tar/{file.name}")
        assert member is not None
        found = []
        for place in (file, member):
            try:
                with OpenedVideo(place) as video:
                    found.append(video.decode(request))
            except DecodeError as error:
                found.append(error)
        alone, inside = found
        if isinstance(alone, DecodeError):
            assert isinstance(inside, DecodeError) and inside.reason == alone.reason
            assert str(inside).startswith(f"{member}: ") and "\n" not in str(inside)
        else:
            assert not isinstance(inside, DecodeError) and inside.decoder == alone.decoder
            np.testing.assert_array_equal(inside.frames, alone.frames)
            good += 1
    assert 10 < good < len(files)


def test_a_member_is_never_read_beyond_its_end(tmp_path: Path) -> None:
    whole = tiny(1)
    write_shard(tmp_path / "0.tar", {"a": {"mp4": whole[:400]}, "b": {"mp4": whole}})
    member = VideoFolder(tmp_path).find("0.tar/a.mp4")
    assert isinstance(member, TarMember)
    with open_bytes(member) as stream:
        assert stream.seek(-10, 2) == 390 and stream.read() == whole[390:400] and stream.read(1) == b""
    for decoder in DECODERS:
        with pytest.raises(DecodeError, match=r"0\.tar/a\.mp4"):
            decode_clip(member, ClipRequest(1, 0.0, (0.0,), None, "pad"), decoder=decoder)  # type: ignore[arg-type]


def test_a_playlist_in_a_tar_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(tiny(1))
    lists = {"a": b"ffconcat version 1.0\nfile secret.mp4\n", "b": b"#EXTM3U\n#EXTINF:2,\nsecret.mp4\n"}
    write_shard(tmp_path / "0.tar", {key: {"mp4": content} for key, content in lists.items()})
    for key in lists:
        with pytest.raises(DecodeError, match="cannot be opened"):
            probe(VideoFolder(tmp_path).find(f"0.tar/{key}.mp4"))  # type: ignore[arg-type]
    assert "concat" not in CONTAINERS


def with_size(tar: bytes, offset: int, num_bytes: int) -> bytes:
    """The tar with another size in the header at `offset`."""
    header = bytearray(tar[offset : offset + 512])
    header[124:136] = num_bytes.to_bytes(12, "big", signed=True)
    header[148:156] = f"{sum(header[:148]) + 8 * 32 + sum(header[156:]):06o}\0 ".encode()
    return tar[:offset] + header + tar[offset + 512 :]


def broken_tars(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Content by name, and what is said of it."""
    whole = write_shard(folder / "whole.tar", {"a": {"mp4": b"x" * 1000}, "b": {"mp4": b"y" * 1000}}).read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder / "whole.tar", "a.mp4")
    return {
        "empty": (b"", "not a whole tar"),
        "text": (b"no tar" * 1000, "not a whole tar"),
        "zipped": (buffer.getvalue(), "not a whole tar without compression"),
        "cut in a header": (whole[:2848], "no header and no end at byte 2560"),
        "cut between members": (whole[:2560], "no header and no end at byte 2560"),
        "cut in the last": (whole[: 2560 + 1536 + 100], "unexpected end of data"),
        "damaged header": (whole[:2700] + b"!" + whole[2701:], "no header and no end at byte 2560"),
        "before its start": (with_size(whole, 0, -2048), "not a whole tar"),
        "again and again": (with_size(whole, 3584, -512), "'b.mp4' is in it twice"),
        "for ever": (with_size(whole[:1180] + b"Z" + whole[1181:], 1024, -512), "a member lies before"),
        "twice": (whole[:2560] + whole, "'a.mp4' is in it twice"),
        "no video": (bytes(10240), "no video in these tars"),
    }


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("a/b.c.mp4", "a/b.c"),
        ("./a//b.mp4", "a/b"),
        ("a/..mp4", "a/."),
        ("a/.mp4", "a/.mp4"),
        ("a.", "a."),
        ("d.x/e", "d.x/e"),
    ],
)
def test_extensions_are_those_of_every_python(path: str, short: str) -> None:
    assert without_extension(path) == short


def test_broken_tars_are_one_line(tmp_path: Path) -> None:
    for name, (content, words) in broken_tars(tmp_path).items():
        tar = tmp_path / f"{name}.tar"
        tar.write_bytes(content)
        refused(tar, words, "not a whole tar")  # what a newer tarfile says of negative sizes
    refused(tmp_path / "nowhere.tar", "no such tar")
    refused(tmp_path / "{0..1.tar", "cannot be expanded: Unbalanced braces")
    odd = write_shard(tmp_path / "{odd.tar", {"a": {"mp4": b"x"}})
    assert len(read_annotations(odd, root=tmp_path)) == 1
    tar = write_shard(tmp_path / "out.tar", {"../../etc/a": {"mp4": b"x"}})
    refused(tar, "'out.tar/../../etc/a.mp4' leads out of dataset.root")
    for text, words in ((b"{", "not the JSON"), (b"[1]", "not the JSON"), (b"\xff", "not UTF-8")):
        refused(write_shard(tmp_path / "json.tar", {"a": {"json": text, "mp4": b"x"}}), f"json.tar/a.json: {words}")
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("a.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    refused(tmp_path / "links.tar", "no video in these tars")


def test_two_thousand_mutated_tars_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "fuzzed.tar"
    samples = {key: {"cls": b"1", "json": fields(label="x"), "mp4": b"x" * 700} for key in ("a", "b", "é" * 60)}
    original, refusals = write_shard(tmp_path / "whole.tar", samples).read_bytes(), 0
    for _ in range(2000):
        content = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(content))
            content[start : start + rng.randint(1, 12)] = rng.randbytes(rng.choice((1, 1, 8, 12)))
        path.write_bytes(content[: rng.choice((len(content), len(content), rng.randrange(len(content))))])
        try:
            found = read_annotations(path, root=tmp_path)
            folder = VideoFolder(tmp_path)
            assert all(folder.find(video.path) for video in found)
        except DataError as error:
            refusals += 1
            assert "\n" not in str(error) and len(str(error)) < 1500
    assert 0 < refusals < 2000
