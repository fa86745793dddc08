"""FSDP2 in two real processes on CPUs: as the guide says, against one process with twice the batch, and resumed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from forked import run_together
from safetensors.torch import load_file

from flcache.config import load_config
from flcache.pipelines import evaluate, train
from flcache.training import read_metrics

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "fsdp.md"
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block",
}
WATCHED = ["training.validate_every=2", "training.validate_clips=5", "evaluation.batch_size=2", "training.ema=0.9"]
WATCHED += [
    "training.schedule=constant",
    "training.accumulate=2",
    "training.checkpoint_every=2",
    "training.keep_checkpoints=9",
]
SOURCES = {
    "cache": [],
    "flow": ["predictor.kind=flow_matching", "training.loss=l2"],
    "trainable": ["training.source=videos", "encoder_trainable=[layer.1]"],
    "bf16": ["training.precision=bf16"],
}
FOLDERS = {name: ("two", "back") if name in ("cache", "trainable") else ("two",) for name in SOURCES}
"""Runs of two processes; `back` goes on from one of one process."""


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def train_all(config: Path, settings: list[list[str]]) -> None:
    """A sharded training run for each list of overrides, in one group of processes."""
    os.environ |= FSDP
    Accelerator.end_training = lambda self: None  # the group outlives a run
    for overrides in settings:
        AcceleratorState._reset_state()  # which keeps a precision
        train.run(load_config(config, overrides), resume=True)
    torch.distributed.destroy_process_group()


def refused(config: Path, environment: dict[str, str]) -> None:
    from flcache.pipelines.cli import main

    os.environ |= FSDP | environment
    main(["train", "--config", str(config)])


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], name: str) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.allclose(found[key], tensor, rtol=1e-3, atol=2e-4), f"{name}, {key}"


def test_the_guides_command_trains_a_checkpoint_that_evaluates_and_resumes(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = GUIDE.read_text(encoding="utf-8")
    Path("fsdp.yaml").write_text(re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0], encoding="utf-8")
    Path("my.yaml").write_text(encoded.read_text(encoding="utf-8"), encoding="utf-8")
    (line,) = re.findall(r"^ {4}(accelerate launch .*)$", section, re.MULTILINE)
    settings = [*WATCHED, "training.steps=4"]
    scripts = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    launch, name, *arguments = shlex.split(line)
    assert (launch, name) == ("accelerate", "launch")
    command = [sys.executable, "-m", "accelerate.commands.launch", *arguments, *settings, "training.dir=two"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": scripts}, check=False)
    assert done.returncode == 0, done.stderr
    assert "sharded over 2 processes" in done.stderr
    train.run(load_config(encoded, [*settings, "training.dir=one", "training.batch_size=8"]))
    assert losses(Path("two")) == pytest.approx(losses(Path("one")), rel=1e-4)
    evaluate.run(load_config(encoded, [*settings, "training.dir=two"]), checkpoint=Path("best"))
    train.run(load_config(encoded, [*settings, "training.dir=two", "training.steps=6"]), resume=True)
    assert len(losses(Path("two"))) == 6


def test_sharded_training_is_that_of_one_process_for_every_source(encoded: Path, tmp_path: Path) -> None:
    """With validation, an average, accumulation and checkpoints; once the last half follows that of one process."""
    for name, own in SOURCES.items():
        settings = [*own, *WATCHED, "training.batch_size=4", f"training.dir={tmp_path / name / 'one'}"]
        AcceleratorState._reset_state()
        train.run(load_config(encoded, [*settings, "training.steps=4"]))
        if "back" in FOLDERS[name]:
            train.run(load_config(encoded, [*settings, "training.steps=2", f"training.dir={tmp_path / name / 'back'}"]))
    two = [
        [*own, *WATCHED, "training.batch_size=2", "training.steps=4", f"training.dir={tmp_path / name / folder}"]
        for name, own in SOURCES.items()
        for folder in FOLDERS[name]
    ]
    results = run_together(train_all, (encoded, two), (encoded, two))
    assert [result.returncode for result in results] == [0, 0], "".join(result.stderr for result in results)
    for name in SOURCES:
        one, *others = (tmp_path / name / folder for folder in ("one", *FOLDERS[name]))
        for other in others:
            if name != "flow":  # whose noise differs between processes
                assert losses(other) == pytest.approx(losses(one), rel=2e-2 if name == "bf16" else 1e-4), name
            for checkpoint in ("step-00000004", "best"):
                expected, found = (
                    load_file(run / "checkpoints" / checkpoint / "model.safetensors") for run in (one, other)
                )
                if name in ("cache", "trainable"):
                    assert_close(found, expected, name)
        skills = [
            [value for key, value in read_metrics(run / "metrics.jsonl")[-1].items() if "validation" in key]
            for run in (one, *others)
        ]
        assert len(skills[0]) > 4
        if name in ("cache", "trainable"):
            assert skills[1] == pytest.approx(skills[0], abs=1e-3) == skills[2]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FSDP_VERSION": "1"}, '"fsdp_version: 2" in the configuration of accelerate'),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        (
            {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "fsdp_activation_checkpointing: set it to false",
        ),
    ],
    ids=["version", "offload", "checkpointing"],
)
def test_what_does_not_go_with_sharding_is_one_line(encoded: Path, environment: dict[str, str], message: str) -> None:
    for result in run_together(refused, (encoded, environment), (encoded, environment)):
        assert result.returncode == 1 and message in result.stderr, result.stderr
        assert "Traceback" not in result.stderr
