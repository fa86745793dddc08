"""Two real processes against one with twice the batch: every predictor kind and source, resumed, clips that fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from forked import run_together
from safetensors.torch import load_file

from flcache.config import load_config
from flcache.pipelines import train
from flcache.predictor import PREDICTORS
from flcache.training import read_metrics

KINDS = {
    "causal": ["training.rollout_steps=2"],
    "parallel": [],
    "cross_attention": [],
    "flow_matching": ["training.loss=l2"],
}
SOURCES = {
    "cache": ["training.source=cache"],
    "frozen": ["training.source=videos"],
    "trainable": ["training.source=videos", "encoder_trainable=true"],
}
ANTI_COLLAPSE = {
    "sigreg": ["training.target_encoder=online", "training.anti_collapse=sigreg"],
    "vicreg": ["training.anti_collapse=vicreg"],
}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def train_all(config: Path, settings: list[list[str]]) -> None:
    """A training run for each list of overrides, in one group of processes."""
    Accelerator.end_training = lambda self: None  # the group outlives a run
    for overrides in settings:
        train.run(load_config(config, overrides), resume=True)
    torch.distributed.destroy_process_group()


def compare(config: Path, folder: Path, settings: dict[str, list[str]], batch_size: int) -> None:
    """Train all `settings` both ways; losses must be equal where nothing but boundaries is drawn."""
    two = [
        [*overrides, f"training.dir={folder / name / 'two'}", f"training.batch_size={batch_size}"]
        for name, overrides in settings.items()
    ]
    results = run_together(train_all, (config, two), (config, two))
    assert [result.returncode for result in results] == [0, 0], "".join(result.stderr for result in results)
    for name, overrides in settings.items():
        one = [f"training.dir={folder / name / 'one'}", f"training.batch_size={2 * batch_size}"]
        train.run(load_config(config, [*overrides, *one]))
        found, expected = losses(folder / name / "two"), losses(folder / name / "one")
        assert len(found) == len(expected) > 1
        if "flow_matching" not in name:
            assert found == pytest.approx(expected, rel=1e-4), name


def test_every_kind_and_source_trains_in_two_processes_as_in_one(encoded: Path, tmp_path: Path) -> None:
    assert set(KINDS) == set(PREDICTORS)
    settings = {
        f"{kind}-{source}": [f"predictor.kind={kind}", *own, *of_source, "training.steps=3"]
        for kind, own in KINDS.items()
        for source, of_source in SOURCES.items()
    }
    compare(encoded, tmp_path, settings, batch_size=4)


def test_anti_collapse_counts_the_clips_of_all_processes(encoded: Path, tmp_path: Path) -> None:
    """So do the statistics that latents are standardised with; losses and gradients are those of one process."""
    common = [*SOURCES["trainable"], "predictor.kind=parallel", "training.accumulate=2", "training.steps=3"]
    settings = {name: [*common, *own] for name, own in ANTI_COLLAPSE.items()}
    compare(encoded, tmp_path, settings, batch_size=2)
    for name in settings:
        one, two = (read_metrics(tmp_path / name / processes / "metrics.jsonl") for processes in ("one", "two"))
        for metric in ("loss/anti_collapse", "gradient_norm"):
            assert [line[metric] for line in two] == pytest.approx([line[metric] for line in one], rel=1e-4), name
        kept = [
            load_file(tmp_path / name / processes / "checkpoints" / "step-00000003" / "model.safetensors")
            for processes in ("one", "two")
        ]
        for part in ("mean", "std"):
            torch.testing.assert_close(kept[0][part], kept[1][part], rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_with_another_number_of_processes(encoded: Path, tmp_path: Path) -> None:
    """With accumulation: two processes all the way, two and then one, one and then two."""
    plans = ("two", "down", "up")
    common = ["training.accumulate=2", "training.checkpoint_every=2", "predictor.kind=parallel"]

    def settings(source: str, plan: str, processes: int, steps: int) -> list[str]:
        folder = [f"training.dir={tmp_path / source / plan}", f"training.steps={steps}", "training.schedule=constant"]
        return [*SOURCES[source], *common, *folder, f"training.batch_size={4 // processes}"]

    for source in SOURCES:
        train.run(load_config(encoded, settings(source, "one", 1, 4)))
        train.run(load_config(encoded, settings(source, "up", 1, 2)))
    two = [settings(source, plan, 2, 4 if plan != "down" else 2) for source in SOURCES for plan in plans]
    results = run_together(train_all, (encoded, two), (encoded, two))
    assert [result.returncode for result in results] == [0, 0], "".join(result.stderr for result in results)
    for source in SOURCES:
        train.run(load_config(encoded, settings(source, "down", 1, 4)), resume=True)
        expected = losses(tmp_path / source / "one")
        for plan in plans:
            found = losses(tmp_path / source / plan)
            assert len(found) == 4 and found == pytest.approx(expected, rel=1e-4), (source, plan)


def test_processes_whose_clips_fail_wait_and_count_for_nothing(config_file: Path, videos: Path, tmp_path: Path) -> None:
    """Batches of one clip a process: a clip that fails leaves nothing. The other one's counts in full."""
    root = tmp_path / "damaged"
    shutil.copytree(videos, root)
    damaged = sorted(root.rglob("t0*.mp4"))[::6]
    assert len(damaged) == 4
    for path in damaged:
        path.write_bytes(b"not a video")
    overrides = [f"dataset.root={root}", f"dataset.train={root / 'train.csv'}", f"dataset.val={root / 'val.csv'}"]
    overrides += ["training.source=videos", "predictor.kind=parallel", "encode.max_failed_fraction=0.5"]
    settings = {kind: [*overrides, *SOURCES[kind], "training.steps=10"] for kind in ("frozen", "trainable")}
    compare(config_file, tmp_path, settings, batch_size=1)
