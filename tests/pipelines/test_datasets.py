"""Every form of dataset is planned, encoded and read back: the same latents whichever form named the videos."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset
import yaml
from small_run import flcache, small_config
from trees import tree

from flcache.cache import LatentCache
from flcache.config import load_config
from flcache.errors import CacheError
from flcache.pipelines import encode
from flcache.videos.synthetic import draw_frames, encode_mp4

COUNT = {"train": 4, "val": 2}
Rows = dict[str, list[tuple[str, Path, str]]]
"""By split: name, file and label."""


@pytest.fixture(scope="module")
def rows(videos: Path) -> Rows:
    found: Rows = {}
    for split, count in COUNT.items():
        with (videos / f"{split}.csv").open() as file:
            some = list(csv.DictReader(file))[:count]
        names = [(row["label"], f"{row['youtube_id']}_000000_000002") for row in some]
        found[split] = [(name, videos / label / f"{name}.mp4", label) for label, name in names]
    return found


def kinetics(rows: Rows, root: Path) -> list[str]:
    for split, some in rows.items():
        lines = [f"{label},{name[:11]},0,2,{split},0" for name, _, label in some]
        (root / f"{split}.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split,is_cc", *lines]))
        for _, file, label in some:
            (root / label).mkdir(exist_ok=True)
            shutil.copy(file, root / label)
    return [f"dataset.train={root}/train.csv", f"dataset.val={root}/val.csv"]


def path_index(rows: Rows, root: Path) -> list[str]:
    kinetics(rows, root)
    for split, some in rows.items():
        (root / f"{split}.csv").write_text("".join(f"{label}/{file.name} {len(label)}\n" for _, file, label in some))
    return [f"dataset.train={root}/train.csv", f"dataset.val={root}/val.csv"]


def header_csv(rows: Rows, root: Path) -> list[str]:
    kinetics(rows, root)
    lines = [f"{label}/{file.name},{label},{split}" for split, some in rows.items() for _, file, label in some]
    (root / "all.csv").write_text("\n".join(["path,label,split", *lines]))
    return [f"dataset.train={root}/all.csv"]


def folder_tree(rows: Rows, root: Path) -> list[str]:
    for split, some in rows.items():
        for _, file, label in some:
            (root / split / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / split / label)
    return []


def something_something(rows: Rows, root: Path) -> list[str]:
    for split, some in rows.items():
        entries = [
            {"id": f"{name[1:7]}{split}", "label": "x", "template": label.replace(" ", " [") + "]", "placeholders": []}
            for name, _, label in some
        ]
        (root / f"{split}.json").write_text(json.dumps(entries))
        for entry, (_, file, _) in zip(entries, some, strict=True):
            shutil.copy(file, root / f"{entry['id']}.mp4")
    return [f"dataset.train={root}/train.json", f"dataset.val={root}/val.json"]


def tars(rows: Rows, root: Path) -> list[str]:
    """Two samples a shard, the training shards first, as video2dataset writes them."""
    samples = [sample for some in rows.values() for sample in some]
    for shard in range(0, len(samples), 2):
        with webdataset.TarWriter(str(root / f"{shard // 2:05d}.tar")) as writer:
            for name, file, label in samples[shard : shard + 2]:
                about = json.dumps({"key": name, "status": "success", "label": label}).encode()
                writer.write({"__key__": name, "mp4": file.read_bytes(), "txt": b"a shape", "json": about})
    return [f"dataset.train={root}/{{00000..00001}}.tar", f"dataset.val={root}/00002.tar"]


def encoded_form(rows: Rows, folder: Path, form: Callable[[Rows, Path], list[str]]) -> tuple[Path, list[str]]:
    """A configuration file and the overrides that name the dataset; its cache is complete."""
    (root := folder / form.__name__).mkdir()
    overrides = [f"dataset.root={root}", f"cache.dir={folder}/{form.__name__}-cache", *form(rows, root)]
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({k: v for k, v in small_config(root, folder).items() if k != "dataset"}))
    encode.run(load_config(config, overrides))
    return config, overrides


@pytest.fixture(scope="module")
def reference(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> LatentCache:
    folder = tmp_path_factory.mktemp("reference")
    encoded_form(rows, folder, kinetics)
    return LatentCache(folder / "kinetics-cache")


@pytest.mark.parametrize("form", [path_index, header_csv, folder_tree, something_something, tars])
def test_a_form_is_encoded_to_the_same_latents(
    rows: Rows, reference: LatentCache, tmp_path: Path, form: Callable[[Rows, Path], list[str]]
) -> None:
    config, overrides = encoded_form(rows, tmp_path, form)
    cache = LatentCache(tmp_path / f"{form.__name__}-cache")
    assert cache.splits == ("train", "val") and not cache.failures()
    for split, some in rows.items():
        found = {clip.video: clip for clip in cache.split(split)}
        expected = {clip.video.partition("/")[2]: clip for clip in reference.split(split)}
        assert len(found) == len(some)
        for name, _, label in some:
            names = (name, f"{name[1:7]}{split}")
            (clip,) = (clip for video, clip in found.items() if Path(video).name.removesuffix(".mp4") in names)
            np.testing.assert_allclose(clip.latents, expected[name].latents, atol=1e-5)
            np.testing.assert_array_equal(clip.times, expected[name].times)
            assert clip.label == (str(len(label)) if form is path_index else label)
    before = tree(cache.path)
    encode.run(load_config(config, overrides))
    assert tree(cache.path) == before


def test_another_file_in_the_folder_is_another_plan(rows: Rows, tmp_path: Path) -> None:
    config, overrides = encoded_form(rows, tmp_path, folder_tree)
    root = tmp_path / "folder_tree"
    shutil.copy(next((root / "val").rglob("*.mp4")), root / "val" / "new.mp4")
    with pytest.raises(CacheError, match=r"the val clips are not .*: 1 clips added"):
        encode.run(load_config(config, overrides))


def test_segments_of_one_file_are_encoded_each_by_itself(tmp_path: Path) -> None:
    (tmp_path / "long.mp4").write_bytes(encode_mp4(draw_frames(3, frames=32, size=32, fps=8), 8))
    (tmp_path / "list.csv").write_text("path,label,start,end\nlong.mp4,a,0,1\nlong.mp4,b,1,1.5\nlong.mp4,c,2.5,\n")
    content = small_config(tmp_path, tmp_path) | {"dataset": {"root": str(tmp_path)}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    encode.run(load_config(config, [f"dataset.train={tmp_path}/list.csv"]))
    found = {clip.label: clip for clip in LatentCache(tmp_path / "cache")}
    assert {label: clip.valid.tolist() for label, clip in found.items()} == {
        "a": [True] * 4,
        "b": [True, True, False, False],
        "c": [True] * 4,
    }
    (tmp_path / "list.csv").write_text("path,label,start,end\nlong.mp4,a,0,1\nlong.mp4,b,1,2\nlong.mp4,c,2.5,\n")
    with pytest.raises(CacheError, match="the train clips are not"):
        encode.run(load_config(config, [f"dataset.train={tmp_path}/list.csv"]))


ODD = [
    *(("libx264", container, "yuv420p", (32, 48)) for container in ("mp4", "mkv", "mov", "avi", "ts", "flv")),
    ("libx264", "mp4", "yuv444p", (31, 45)),
    ("libx265", "mp4", "yuv420p", (64, 64)),
    ("libvpx-vp9", "webm", "yuv420p", (64, 48)),
    ("libvpx-vp9", "mkv", "yuv420p", (37, 41)),
    ("mpeg4", "avi", "yuv420p", (48, 48)),
    ("mpeg4", "m4v", "yuv420p", (32, 32)),
]


def write_odd_videos(folder: Path) -> None:
    for number, (codec, container, pixels, (height, width)) in enumerate(ODD):
        name, kind = folder / f"{number} {codec}.{container}", {"m4v": "mp4", "mkv": "matroska", "ts": "mpegts"}
        with av.open(str(name), "w", format=kind.get(container, container)) as file:
            stream = file.add_stream(codec, rate=10 + number)
            stream.height, stream.width, stream.pix_fmt = height, width, pixels
            for picture in draw_frames(number, frames=1 + 3 * number, size=64, fps=8)[:, :height, :width]:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            file.mux(stream.encode(None))


def test_a_folder_of_odd_videos_takes_one_command_and_no_list(tmp_path: Path) -> None:
    """Twelve videos that trip decoders: those beside the checkout where they are, else as many of our own."""
    real, folder = Path(__file__).resolve().parents[3] / "shared" / "videos" / "odd", tmp_path / "odd"
    folder.mkdir()
    if real.is_dir():
        for file in real.iterdir():
            shutil.copy(file, folder)
    else:
        write_odd_videos(folder)
    check_encoded(folder, tmp_path)


def test_a_folder_of_odd_videos_that_we_write(tmp_path: Path) -> None:
    (folder := tmp_path / "odd").mkdir()
    write_odd_videos(folder)
    check_encoded(folder, tmp_path)


def check_encoded(folder: Path, kept: Path) -> None:
    config = kept / "config.yaml"
    config.write_text(yaml.safe_dump({k: v for k, v in small_config(folder, kept).items() if k != "dataset"}))
    names = {file.name for file in folder.iterdir()}
    assert len(names) == 12
    done = flcache("encode", "--config", config, f"dataset.root={folder}", "clip.frames=4")
    assert done.returncode == 0, done.stderr
    cache = LatentCache(kept / "cache")
    assert not cache.failures() and {clip.video for clip in cache} == names
    assert all(np.isfinite(clip.latents).all() and clip.label is None for clip in cache)
