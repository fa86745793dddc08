"""The predictor of the guide, registered from outside the package: it trains, evaluates and is inspected like ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import yaml
from forked import run_forked
from rich.filesize import decimal

from flcache.cache import CacheWriter
from flcache.config import load_config
from flcache.errors import ConfigError
from flcache.pipelines import evaluate, train
from flcache.predictor import PREDICTORS, Predictor, PredictorOptions, register_predictor, training_memory_bytes
from flcache.training import read_metrics

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "predictor.md"
T, H, W, D = 6, 2, 2, 4


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`linear.py`, as the guide prints it."""
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)[0]
    assert len(code.splitlines()) < 40
    path = tmp_path_factory.mktemp("linear") / "linear.py"
    path.write_text(code, encoding="utf-8")
    return path


@pytest.fixture
def linear(script: Path) -> Iterator[type[Predictor]]:
    """The class in it, registered until the test ends."""
    found: dict[str, Any] = {"__name__": "linear"}
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), found)
    yield found["LinearPredictor"]
    del PREDICTORS["linear"]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A configuration over a cache of clips whose every step is one rotation of the step before it."""
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))[0]
    writer = CacheWriter(tmp_path / "cache", (T, H, W, D), codec="float32", context="step")
    for split, clips in (("train", 24), ("val", 8)):
        steps = [np.random.default_rng(clips).standard_normal((clips, H, W, D))]
        for _ in range(T - 1):
            steps.append(steps[-1] @ turn)
        writer.write(split, [f"{split}-{clip}" for clip in range(clips)], np.stack(steps, 1).astype(np.float32))
    training = {"dir": str(tmp_path / "training"), "steps": 200, "batch_size": 8, "warmup_steps": 5, "device": "cpu"}
    settings = {
        "cache": {"dir": str(tmp_path / "cache")},
        "predictor": {"kind": "linear"},
        "training": {**training, "learning_rate": 0.03, "weight_decay": 0.0, "loss": "l2", "log_every": 1},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_it_learns_what_is_linear(
    linear: type[Predictor], config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(config_file)
    train.run(config)
    first = read_metrics(tmp_path / "training" / "metrics.jsonl")[0]
    assert first["loss"] == first["loss/copy_last"]
    capsys.readouterr()
    evaluate.run(config, as_json=True)
    horizons = json.loads(capsys.readouterr().out)["horizons"]
    assert [row["horizon"] for row in horizons] == [1, 2, 3]
    assert all(row["skill"]["copy_last"] > 0.9 and "samples" not in row for row in horizons)
    again = load_config(tmp_path / "training" / "checkpoints" / "step-00000200" / "config.yaml")
    assert again == config


def test_its_script_is_a_command_line(linear: type[Predictor], script: Path) -> None:
    shown = run_forked(forked.script, script, "inspect-config", "--config", "demo", "predictor.kind=linear")
    assert re.search(r"predictor +4,160 +4,160\n", shown.stdout), shown.stderr  # 64 x 64 and 64
    memory = training_memory_bytes(PredictorOptions("linear"), (16, 4, 4, 64), batch_size=4, rollout_steps=8)
    assert f"training   {decimal(memory)} for the predictor with 4 clips a step" in shown.stdout


def test_its_memory_is_that_of_weights_and_latents(linear: type[Predictor]) -> None:
    def stated(batch_size: int) -> int:
        return training_memory_bytes(PredictorOptions("linear"), (T, H, W, D), batch_size=batch_size, rollout_steps=1)

    assert stated(0) == 16 * sum(weight.numel() for weight in linear(PredictorOptions(), (T, H, W, D)).parameters())
    assert stated(8) - stated(0) > 8 * 4 * T * H * W * D


def test_a_kind_exists_once_it_is_registered(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml:\d+: predictor\.kind: .*one of causal, .*, got linear"):
        load_config(config_file)


def test_a_name_is_given_once(linear: type[Predictor]) -> None:
    assert register_predictor(linear) is linear

    class Other(linear):  # type: ignore[misc, valid-type]
        kind = "causal"

    with pytest.raises(ConfigError, match=r'"causal" is flcache\.predictor\.causal:CausalPredictor already'):
        register_predictor(Other)
