"""`predictor.actions`: from videos with actions to an evaluation, a report and predictions of an exported predictor."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_run import small_config

from flcache.cache import LatentCache, array_statistics
from flcache.config import Config, load_config
from flcache.errors import ConfigError, DecodeError
from flcache.pipelines import encode, evaluate, export, predict, probe, report, train
from flcache.predictor import load_predictor
from flcache.training import latest_checkpoint, open_checkpoint
from flcache.videos import write_dataset

CONTEXT, STEPS = 2, 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    write_dataset(root, train_videos=12, val_videos=5, frames=16, size=32, actions=True)
    return root


def configured(root: Path, folder: Path, *overrides: str) -> Config:
    content = small_config(root, folder)
    content["dataset"]["arrays"] = ["actions"]
    content["predictor"]["actions"] = True
    content["training"] |= {"context_steps": CONTEXT, "rollout_steps": 2, "validate_every": 6, "validate_clips": 5}
    content["evaluation"] = {"batch_size": 2}  # the last batch is of one clip
    content["probe"] = {"batch_size": 4, "epochs": 1}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_config(path, overrides)


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = configured(root, tmp_path_factory.mktemp("trained"))
    encode.run(config)
    train.run(config)
    return config


def logged(config: Config) -> list[float]:
    lines = (Path(config.require("training.dir")) / "metrics.jsonl").read_text().splitlines()
    return [found["loss/prediction"] for found in map(json.loads, lines) if "loss/prediction" in found]


def test_actions_are_standardised_by_those_of_the_training_split(trained: Config) -> None:
    cache = LatentCache(trained.require("cache.dir"), "train")
    rows = np.concatenate([clip.arrays["actions"] for clip in cache])
    found = array_statistics(cache, "actions")
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-7)
    np.testing.assert_allclose(found.std, rows.std(0), rtol=1e-5)
    with np.load(next(Path(trained.require("dataset.root")).rglob("t*.npz"))) as arrays:
        assert arrays["actions"].shape == (16, 2)
    assert rows.shape == (12 * STEPS, 4)
    checkpoint = latest_checkpoint(Path(trained.require("training.dir")) / "checkpoints")
    assert (checkpoint / "config.yaml").read_text().count("actions: true") == 1 and open_checkpoint(checkpoint)


def test_the_evaluation_says_what_shuffled_actions_cost(trained: Config, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run(trained)
    printed = capsys.readouterr().out
    assert "shuffled" in printed and "those of another clip; the others see none" in printed
    folder = Path(trained.require("training.dir"))
    rows = json.loads((folder / "evaluation.json").read_text())["horizons"]
    assert len(rows) == STEPS - CONTEXT and all("shuffled_actions" in row["skill"] for row in rows)
    for row in rows:
        shuffled = row["baselines"]["shuffled_actions"]
        assert shuffled["error"] != row["error"]
        assert row["skill"]["shuffled_actions"] == pytest.approx(1 - row["error"] / shuffled["error"])
    with (folder / "evaluation.csv").open(newline="") as stream:
        assert "skill.shuffled_actions" in next(csv.reader(stream))
    validations = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if "validation/" in line]
    assert validations
    report.run(folder)
    page = next(folder.rglob("report.html")).read_text()
    assert "shuffled actions" in page
    probe.run(trained)


def test_live_videos_train_to_the_losses_of_the_cache(trained: Config, tmp_path: Path) -> None:
    live = replace(trained.training, source="videos", dir=str(tmp_path), validate_every=None)
    train.run(config := replace(trained, training=live))
    np.testing.assert_allclose(logged(config), logged(trained), rtol=1e-4)


def test_without_a_cache_the_first_videos_give_the_statistics(trained: Config, tmp_path: Path) -> None:
    live = replace(trained.training, source="videos", dir=str(tmp_path), validate_every=None)
    train.run(config := replace(trained, training=live, cache=replace(trained.cache, dir=None)))
    np.testing.assert_allclose(logged(config), logged(trained), rtol=1e-2)


def test_a_resumed_run_is_an_uninterrupted_one(trained: Config, tmp_path: Path) -> None:
    copy = shutil.copytree(trained.require("training.dir"), tmp_path / "training")
    newest = latest_checkpoint(copy / "checkpoints")
    expected = (newest / "model.safetensors").read_bytes()
    shutil.rmtree(newest)
    train.run(replace(trained, training=replace(trained.training, dir=str(copy))), resume=True)
    assert (newest / "model.safetensors").read_bytes() == expected


def test_an_exported_predictor_takes_raw_actions(trained: Config, tmp_path: Path) -> None:
    export.run(Path(trained.require("training.dir")), tmp_path / "model")
    predictor = load_predictor(tmp_path / "model" / "predictor")
    clip = LatentCache(trained.require("cache.dir"), "val")[0]
    context, actions = torch.from_numpy(clip.latents[:CONTEXT])[None], torch.from_numpy(clip.arrays["actions"])[None]
    found, other = predictor(context, actions=actions), predictor(context, actions=-actions)
    assert found.shape == (1, STEPS - CONTEXT, *clip.latents.shape[1:]) and not torch.equal(found, other)
    video = next(Path(trained.require("dataset.root")).rglob(f"{Path(clip.video).name}*.mp4"))
    predict.run([video], tmp_path / "model", tmp_path / "out", device="cpu")
    with np.load(tmp_path / "out" / f"{video.stem}.npz") as predicted:
        np.testing.assert_allclose(predicted["prediction"][2], found[0].numpy(), atol=1e-4)  # the clip is in the middle
    alone = tmp_path / "alone.mp4"
    alone.write_bytes(video.read_bytes())
    with pytest.raises(DecodeError, match=r"alone.npz: no such file; .*actions"):
        predict.run([alone], tmp_path / "model", tmp_path / "out", device="cpu")


def test_mistakes_are_one_line(root: Path, trained: Config, tmp_path: Path) -> None:
    parallel = replace(trained, predictor=replace(trained.predictor, kind="parallel"))
    fresh = replace(parallel, training=replace(trained.training, dir=str(tmp_path / "a")))
    with pytest.raises(ConfigError, match="parallel takes no actions"):
        train.run(fresh)
    plain = configured(root, tmp_path, "dataset.arrays=[]")
    encode.run(plain)
    with pytest.raises(ConfigError, match="these latents come without actions"):
        train.run(plain)
    with pytest.raises(ConfigError, match=r"training.augment.flip: actions are those of videos as they are"):
        train.run(configured(root, tmp_path, "training.source=videos", "training.augment.flip=true"))
