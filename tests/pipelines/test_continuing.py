"""`--resume`: which settings may change, on which device, and from which checkpoint where folders are not shared."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from forked import command_line, run_together

from flcache.config import load_config
from flcache.errors import ConfigError, TrainingError
from flcache.pipelines import evaluate, train
from flcache.training import read_metrics

STORED = Path(__file__).parent.parent / "fixtures" / "b98e9e3"


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stored run, as the current folder."""
    shutil.copytree(STORED, tmp_path / "earlier")
    monkeypatch.chdir(tmp_path / "earlier")
    return tmp_path / "earlier"


@pytest.mark.parametrize(
    ("override", "before", "now"),
    [
        ("training.learning_rate=0.001", 0.0005, 0.001),
        ("training.weight_decay=0.1", 0.04, 0.1),
        ("training.loss=l2", "l1", "l2"),
        ("training.horizon_weights=[1,2]", [1.0], [1.0, 2.0]),
        ("seed=3", 0, 3),
        ("predictor.overrides.depth=2", 1, 2),
        ("allow_leak=true", False, True),
    ],
)
def test_what_a_run_began_with_is_refused_by_name(earlier: Path, override: str, before: object, now: object) -> None:
    """An earlier checkpoint too; nothing is written."""
    metrics = (earlier / "training" / "metrics.jsonl").read_bytes()
    said = re.escape(f"{override.split('=')[0]} was {before}, is {now}; set them back")
    with pytest.raises(TrainingError, match=said):
        train.run(load_config("config.yaml", ["training.steps=6", override]), resume=True)
    assert (earlier / "training" / "metrics.jsonl").read_bytes() == metrics


def test_what_may_change_is_said_and_takes_effect(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (earlier / "float16").rename(earlier / "moved")
    overrides = ["training.steps=6", "training.log_every=2", "cache.dir=moved", "evaluation.batch_size=2"]
    train.run(load_config("config.yaml", overrides), resume=True)
    said = capsys.readouterr().out
    for change in ("training.steps was 4, is 6", "training.log_every was 1, is 2", "cache.dir was float16, is moved"):
        assert f"continued with {change}" in said
    assert [line["step"] for line in read_metrics(earlier / "training" / "metrics.jsonl")] == [1, 2, 3, 4, 6]


def test_settings_that_nobody_knows_stop(earlier: Path) -> None:
    (kept,) = (earlier / "training" / "checkpoints").glob("*/config.yaml")
    for content in ("[", "a text"):
        kept.write_text(content, encoding="utf-8")
        with pytest.raises(TrainingError, match=r"config\.yaml: .* nobody knows the settings of this run"):
            train.run(load_config("config.yaml", ["training.steps=6"]), resume=True)


@pytest.mark.parametrize("device", ["cuda:99", "cuda:x"])
def test_a_device_that_is_not_here_is_one_line_in_every_stage(earlier: Path, device: str) -> None:
    config = load_config("config.yaml", [f"training.device={device}", "training.steps=6"])
    for stage in (lambda: train.run(config, resume=True), lambda: evaluate.run(config)):
        with pytest.raises(ConfigError, match=f'device "{device}": this machine has .*cpu; set training.device'):
            stage()


def test_two_machines_continue_from_one_checkpoint_or_stop(encoded: Path, tmp_path: Path) -> None:
    """The second has no checkpoint: it would start anew beside one that goes on."""
    train.run(load_config(encoded, [f"training.dir={tmp_path / 'first'}", "training.steps=3"]))
    before = (tmp_path / "first" / "metrics.jsonl").read_bytes()
    results = on_two_machines(encoded, [tmp_path / "first", tmp_path / "second"])
    for code, errors in results:
        assert code == 1
        assert "process 0 finds step-00000003, process 1 no checkpoint: all must continue from one" in errors
    assert (tmp_path / "first" / "metrics.jsonl").read_bytes() == before
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    assert [code for code, _ in on_two_machines(encoded, [tmp_path / "first", tmp_path / "second"])] == [0, 0]
    assert (tmp_path / "first" / "checkpoints" / "step-00000006").is_dir()


def on_two_machines(config: Path, folders: list[Path]) -> list[tuple[int, str]]:
    """Exit code and errors of two processes of one run to step 6, each with a folder of its own."""
    stage = ("train", "--config", config, "--resume", "training.batch_size=2")
    results = run_together(command_line, *[(*stage, f"training.dir={folder}") for folder in folders])
    return [(result.returncode, result.stderr) for result in results]
