"""Lists and videos in a bucket: the plan and the bytes of local ones, over a road that loses, cuts and spoils."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import boto3
import pytest
import yaml
from bad_road import bad_road
from forked import command_line, run_forked
from small_run import flcache, small_config
from test_datasets import Rows, folder_tree, kinetics, rows, tars
from trees import tree

from flcache.cache import LatentCache
from flcache.config import load_config
from flcache.pipelines import encode
from flcache.pipelines.doctor.places import dataset_bucket
from flcache.remote import files

__all__ = ["rows"]

Form = Callable[[Rows, Path], list[str]]


def upload(port: int, root: Path, url: str) -> None:
    """All files below `root`, past the bad road."""
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    bucket, _, folder = url.removeprefix("s3://").partition("/")
    for name, content in tree(root).items():
        client.put_object(Bucket=bucket, Key=f"{folder}/{name}", Body=content)


def encode_from(config: Path, url: str, kept: Path, *overrides: str) -> dict[str, bytes]:
    """The cache of the videos at `url`, made by the command line."""
    folders = [f"cache.dir={kept}/cache", f"cache.local_dir={kept}/copies"]
    done = flcache("encode", "--config", config, f"dataset.root={url}", *folders, *overrides)
    assert done.returncode == 0, done.stderr
    return tree(kept / "cache")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Without a dataset."""
    path, content = tmp_path / "config.yaml", small_config(tmp_path, tmp_path)
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if key != "dataset"}))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.mark.parametrize("form", [kinetics, folder_tree, tars])
def test_a_dataset_in_a_bucket_gives_the_bytes_of_a_local_one(
    form: Form, rows: Rows, config: Path, root: Path, bucket: str, server: int, tmp_path: Path
) -> None:
    lists = form(rows, root)
    encode.run(load_config(config, [f"dataset.root={root}", *lists]))
    upload(server, root, bucket)
    there = [line.replace(str(root), bucket) for line in lists]
    assert encode_from(config, bucket, tmp_path / "far", *there) == tree(tmp_path / "cache")
    if form is kinetics:  # the list may be here and the videos there
        assert encode_from(config, bucket, tmp_path / "near", *lists) == tree(tmp_path / "cache")


def test_what_the_page_types_runs(
    rows: Rows, root: Path, bucket: str, server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = small_config(tmp_path, tmp_path) | {"dataset": {}}
    Path("my.yaml").write_text(yaml.safe_dump(content | {"cache": {"dir": "latents", "local_dir": "copies"}}))
    for name in ("videos", "lists"):
        (root / name).mkdir()
        kinetics(rows, root / name)
    upload(server, root, bucket)
    page = (Path(__file__).resolve().parents[2] / "docs" / "bucket.md").read_text(encoding="utf-8")
    lines = re.findall(r"^ {4}flcache (encode .* dataset.root=.*)$", page, re.MULTILINE)
    for line in lines:
        done = flcache(*shlex.split(line.replace("s3://my-bucket", bucket), comments=True))
        assert done.returncode == 0, done.stderr
    assert [len(LatentCache(name)) for name in ("latents", "latents-of-all")] == [4, 6] and len(lines) == 2


def test_nothing_is_fetched_twice_and_what_is_gone_is_named(
    rows: Rows, config: Path, root: Path, bucket: str, server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each video is fetched once for its header and its frames, a list once for both splits; two videos are no more."""
    kinetics(rows, root)
    lines = [f"{label}/{file.name},{label},{split}" for split, some in rows.items() for _, file, label in some]
    (root / "all.csv").write_text("\n".join(["path,label,split", *lines, "gone.mp4,gone,train"]))
    upload(server, root, bucket)
    asked: list[tuple[str, str]] = []
    with bad_road(server, fail=0, cut=0, flip=0, asked=asked) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        encode_from(config, bucket, tmp_path, f"dataset.train={bucket}/all.csv", "dataset.max_missing_fraction=0.5")
    fetched = [path for method, path in asked if method == "GET" and path.endswith((".mp4", ".csv"))]
    assert len(fetched) == len(set(fetched)) == 1 + sum(map(len, rows.values()))
    assert len([path for _, path in asked if "list-type" in path]) < 10
    (failure,) = LatentCache(tmp_path / "cache").failures()
    assert (failure.stage, failure.reason) == ("find", "no file")
    assert failure.message == f"{bucket}/gone.mp4: no such file"


def say_of_bucket(*overrides: str) -> None:
    print(json.dumps([asdict(found) for found in dataset_bucket(load_config(None, overrides))]))


def encode_at_once(*arguments: str) -> None:
    """`flcache encode`, that asks again at once."""
    files.FIRST_PAUSE_S = 0.0
    command_line("encode", *arguments)


def test_a_store_that_cannot_be_reached_is_one_line(config: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(dataset_bucket(load_config(None, ["dataset.root=/videos"])))
    (found,) = dataset_bucket(load_config(None, [f"dataset.train={bucket}/{{0..9}}.tar", "dataset.root=/videos"]))
    assert (found.name, found.state, found.needed) == ("bucket, dataset", "wrong", True)
    assert found.found == f"{bucket}/{{0..9}}.tar: nothing is there" and found.mend == "check dataset.train"
    (found,) = dataset_bucket(load_config(None, ["dataset.root=s3://latents"]))
    assert (found.state, found.found) == ("ok", "s3://latents: can be reached")
    (found,) = dataset_bucket(load_config(None, ["dataset.root=abfs://videos"]))
    assert found.state == "wrong" and "install" in found.found
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    (said,) = json.loads(run_forked(say_of_bucket, f"dataset.root={bucket}").stdout)
    assert (said["state"], said["needed"]) == ("wrong", True) and "check the network" in said["mend"]
    assert said["found"].startswith(f"{bucket}: Could not connect to the endpoint")
    done = run_forked(encode_at_once, "--config", str(config), f"dataset.root={bucket}")
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("Error"))
    assert done.returncode == 1 and error.startswith(f"Error: {bucket}: Could not connect to the endpoint")
