"""Encoding as a user runs it: complete, repeatable, unhurt by kills, and refusing what it must."""

from __future__ import annotations

import gc
import io
import json
import resource
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset
import yaml
from forked import command_line, run_forked, script
from small_run import ENCODER, flcache
from trees import tree

from flcache.cache import LatentCache, read_plan
from flcache.config import load_config
from flcache.errors import DataError, SpecMismatch
from flcache.pipelines import encode
from flcache.pipelines.cli import _exit_code
from flcache.pipelines.setup import encoder

HERE = Path(__file__).parent


def test_every_clip_is_cached_and_a_rerun_touches_nothing(encoded: Path) -> None:
    config = load_config(encoded)
    cache = LatentCache(str(config.cache.dir))
    assert cache.clips("train") == 24 and cache.clips("val") == 6
    assert len(cache.commits) > 4, "several shards are what kills and array jobs need"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in cache.path.rglob("*") if path.is_file()}
    encode.run(config)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in cache.path.rglob("*") if path.is_file()}
    assert before == after


@pytest.mark.parametrize(
    ("device", "shape", "clips"),
    [
        ("cpu", (8, 16, 16, 1024), 8),
        ("cuda", (8, 16, 16, 1024), 32),
        ("cuda:1", (32, 24, 24, 1024), 3),
        ("cuda", (2, 4, 4, 24), 64),
        ("cuda", (1, 300, 300, 8), 1),
    ],
)
def test_a_gpu_takes_larger_batches(
    monkeypatch: pytest.MonkeyPatch, device: str, shape: tuple[int, ...], clips: int
) -> None:
    monkeypatch.setattr(encoder, "pick_device", lambda _: device)
    assert encoder.encode_batch_size(load_config("demo"), shape) == clips
    assert encoder.encode_batch_size(load_config("demo", ["encode.batch_size=5"]), shape) == 5


def test_webdataset_reads_every_sample_equal_to_the_cache(encoded: Path) -> None:
    cache = LatentCache(str(load_config(encoded).cache.dir))
    by_id = {clip.clip_id: clip for clip in (cache[index] for index in range(len(cache)))}
    shards = [str(path) for path in sorted((cache.path / "shards").glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
        samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
        gc.collect()
    assert {sample["__key__"] for sample in samples} == set(by_id)
    for sample in samples:
        latents = np.load(io.BytesIO(sample["latents.npy"]), allow_pickle=False)
        np.testing.assert_array_equal(latents, by_id[sample["__key__"]].latents, strict=True)
        assert json.loads(sample["json"])["clip_id"] == sample["__key__"]


def test_array_jobs_make_the_same_cache_with_any_number_of_workers(config_file: Path, encoded: Path) -> None:
    for part in (1, 2, 0):
        encode.run(load_config(config_file, [f"encode.decode_workers={part + 1}"]), shards=(part, 3))
    assert tree(config_file.parent / "cache") == tree(encoded.parent / "cache")


@pytest.mark.parametrize(
    ("trials", "options"), [(8, []), (2, ["--processes", "2"]), (4, ["--processes", "2", "--one"])]
)
def test_a_run_killed_at_any_moment_is_finished_to_the_same_bytes(
    config_file: Path, trials: int, options: list[str]
) -> None:
    """All of it, or one of its processes."""
    prefix = config_file.parent / "killed"
    result = run_forked(script, HERE / "kill_encode.py", config_file, prefix, "0", str(trials), *options)
    assert result.returncode == 0, result.stdout + result.stderr
    killed = [line.split() for line in result.stdout.splitlines() if line.startswith("killed ")]
    assert len(killed) == trials, result.stdout
    if not options:
        assert any(0 < int(commits) < int(shards) for _, _, commits, shards in killed), "all before the first commit"
    assert any(name.endswith(".tar") for name in tree(Path(f"{prefix}-whole")))


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("encoder.seed=1", "encoder.weights"),
        ("clip.fps=4", "clip.fps"),
        ("cache.codec=float16", "codec"),
        ("encode.context=full", "context.mode"),
        ("encoder.processor={image_mean: [0.0, 0.0, 0.0]}", "processor.image_mean"),
    ],
)
def test_another_spec_is_refused_by_name_and_touches_nothing(encoded: Path, override: str, field: str) -> None:
    cache = encoded.parent / "cache"
    before = tree(cache)
    with pytest.raises(SpecMismatch, match=field):
        encode.run(load_config(encoded, [override]))
    assert tree(cache) == before


def test_another_crop_is_refused_by_name(encoded: Path) -> None:
    architecture = yaml.safe_dump({**ENCODER, "crop_size": 64}, default_flow_style=True).strip()
    with pytest.raises(SpecMismatch, match=r"encoder\.architecture\.crop_size: cache has 32, this run has 64"):
        encode.run(load_config(encoded, [f"encoder.architecture={architecture}"]))


def test_missing_and_broken_videos_are_listed_with_reasons(
    config_file: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (videos / "train.csv").read_text(encoding="utf-8").splitlines()
    broken = config_file.parent / "videos"
    header, kept = rows[0].split(","), [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:7]]
    for number, row in enumerate(kept):
        name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
        source, target = videos / row["label"] / name, broken / row["label"] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        if number == 1:
            content = content[: len(content) // 2]
        if number != 0:
            target.write_bytes(content)
    table = "\n".join([",".join(header), *(",".join(row.values()) for row in kept)])
    (broken / "train.csv").write_text(table + "\n", encoding="utf-8")
    overrides = [f"dataset.root={broken}", f"dataset.train={broken}/train.csv", "dataset.val=null"]
    config = load_config(config_file, [*overrides, "encode.max_failed_fraction=0.5"])
    encode.run(config)
    assert kept[0]["youtube_id"] in capsys.readouterr().err
    cache = LatentCache(str(config.cache.dir))
    failures = {failure.stage: failure for failure in cache.failures()}
    assert len(cache) == 4 and set(failures) == {"find", "decode"}
    assert failures["decode"].reason == "cut off" and kept[1]["youtube_id"] in failures["decode"].message
    with pytest.raises(DataError, match=r"1 of 5 clips failed"):
        encode.run(load_config(config_file, [*overrides, "encode.max_failed_fraction=0.1"]))
    with pytest.raises(DataError, match=r"1 of 6 videos are missing .*dataset\.max_missing_fraction=0\.17"):
        encode.run(
            load_config(config_file, [*overrides, "dataset.max_missing_fraction=0.1", f"cache.dir={broken}/new"])
        )


def test_clips_that_take_longer_than_the_timeout_have_failed(config_file: Path, videos: Path) -> None:
    few = config_file.with_name("few.csv")
    few.write_text("".join((videos / "train.csv").read_text().splitlines(keepends=True)[:3]))
    config = load_config(
        config_file,
        [f"dataset.train={few}", "dataset.val=null", "encode.decode_timeout_s=1e-4", "encode.max_failed_fraction=1"],
    )
    encode.run(config)
    failures = LatentCache(str(config.cache.dir)).failures()
    assert len(failures) == 2 and all("timed out after 0.0001 s" in failure.message for failure in failures)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cache.dri=x"], "did you mean"),
        (["dataset.train=absent.csv"], "absent.csv"),
        (["dataset.train=null"], "dataset.train is not set"),
        (["cache.dir=null"], "cache.dir is not set"),
        (["encoder.name=./no-such-model"], "no-such-model"),
        (["clip.frames=7"], "not a multiple of its step of 2"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    config_file: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(["encode", "--config", str(config_file), *overrides]) == 1
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and message in errors[0] and "Traceback" not in said
    assert not (config_file.parent / "cache").exists()


def test_an_empty_annotation_file_is_an_error(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match=r"empty\.csv: the annotation file is empty"):
        encode.run(load_config(config_file, [f"dataset.train={tmp_path}/empty.csv"]))


def test_no_permission_is_one_line(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    result = flcache("encode", "--config", config_file, f"cache.dir={tmp_path}/file/cache")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("Error: ") and "file" in line]


def with_small_files(*arguments: str | Path) -> None:
    """`flcache ARGUMENTS` under a limit on file size, as a disk that is full after 30,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    command_line(*arguments)


def test_a_full_disk_leaves_nothing_half_written(config_file: Path, encoded: Path) -> None:
    """In the middle of the first shard."""
    result = run_forked(with_small_files, "encode", "--config", config_file)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr and "Error: " in result.stderr
    left = tree(config_file.parent / "cache")
    assert not [name for name in left if name.startswith(("shards/train", "commits/"))]
    assert len(read_plan(config_file.parent / "cache")) == 30
    encode.run(load_config(config_file))
    assert tree(config_file.parent / "cache") == tree(encoded.parent / "cache")
