"""Evaluation as a user runs it: on several processes, in the precision of training, with the encoder loaded once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import command_line, run_together

from flcache.config import load_config
from flcache.encoder import weight_digest
from flcache.pipelines import baselines, evaluate, probe, train
from flcache.pipelines.setup import source as sources
from flcache.pipelines.setup.model import load_trained
from flcache.pipelines.setup.running import as_trained
from flcache.pipelines.setup.source import Reading, open_source
from flcache.training import latest_checkpoint, open_checkpoint

END_TO_END = ["training.source=videos", "encoder_trainable=true"]


def printed_by_two_processes(*arguments: str | Path) -> str:
    """The main process alone prints."""
    first, second = run_together(command_line, arguments, arguments)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == ""
    return first.stdout


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["predictor.kind=parallel"],
        ["predictor.kind=cross_attention"],
        ["predictor.kind=flow_matching", "training.loss=l2", "evaluation.samples=2"],
        END_TO_END,
    ],
    ids=["causal", "parallel", "cross_attention", "flow_matching", "end_to_end"],
)
def test_two_processes_find_what_one_finds(encoded: Path, tmp_path: Path, settings: list[str]) -> None:
    """Bit for bit: 6 clips in batches of 4 and 2 (one a process), baselines fitted to 5 batches, 3 and 2 a process."""
    options = [*settings, f"training.dir={tmp_path}", "evaluation.batch_size=4", "evaluation.baseline_clips=20"]
    config = load_config(encoded, options)
    train.run(config)
    evaluate.run(config)
    alone = (tmp_path / "evaluation.json").read_text(encoding="utf-8")
    (tmp_path / "evaluation.json").unlink()
    said = printed_by_two_processes("evaluate", "--config", encoded, "--json", *options)
    together = (tmp_path / "evaluation.json").read_text(encoding="utf-8")
    assert json.loads(together) == json.loads(alone)
    assert json.loads(said) == json.loads(alone)


def test_baselines_of_two_processes_are_those_of_one(encoded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process without any batch to fit to, or to score, takes part as well."""
    options = ["evaluation.batch_size=8", "evaluation.baseline_clips=8"]
    baselines.run(load_config(encoded, options), as_json=True)
    said = printed_by_two_processes("baselines", "--config", encoded, "--json", *options)
    assert json.loads(said) == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("stage", [evaluate, probe])
def test_the_encoder_is_loaded_once_and_the_checkpoint_has_the_statistics(
    encoded: Path, tmp_path: Path, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [f"training.dir={tmp_path}", "training.source=videos", f"cache.dir={tmp_path}/none", "probe.epochs=1"]
    config = load_config(encoded, options)
    train.run(config)
    calls: list[str] = []

    def counted(name: str) -> None:
        function = getattr(sources, name)
        monkeypatch.setattr(sources, name, lambda *given, **named: calls.append(name) or function(*given, **named))

    counted("load_configured_encoder")
    counted("_calibrate")
    stage.run(config)
    assert calls == ["load_configured_encoder"]


def test_an_evaluation_end_to_end_names_the_encoder_that_was_evaluated(encoded: Path, tmp_path: Path) -> None:
    config = load_config(encoded, [*END_TO_END, f"training.dir={tmp_path}", "training.ema_decay=0.5"])
    train.run(config)
    evaluate.run(config)
    found = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    trained_from = open_checkpoint(checkpoint).record.fingerprint
    with open_source(config, Reading("val", 4, shuffle=False), device="cpu") as source:
        initial = source.hard["encoder"]["weights"]
        model = load_trained(config, source, checkpoint)
        assert model.target_encoder is not None and model.encoder is not None
        target, online = (weight_digest(encoder.encoder) for encoder in (model.target_encoder, model.encoder))
    assert found["end_to_end"] == {
        "trained_from": trained_from, "target_weights": target, "online_weights": online
    }  # fmt: skip
    assert len({initial, target, online}) == 3 and found["fingerprint"] != trained_from


@contextmanager
def recorded_dtypes(found: set[torch.dtype]) -> Iterator[None]:
    """What linear layers answer in."""
    note = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, answer: found.add(answer.dtype) if isinstance(module, torch.nn.Linear) else None
    )
    try:
        yield
    finally:
        note.remove()


@pytest.mark.parametrize("stage", [evaluate, probe])
@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("no", torch.float32)])
def test_models_run_in_the_precision_of_training(
    encoded: Path, tmp_path: Path, stage: Any, precision: str, expected: torch.dtype
) -> None:
    options = [f"training.dir={tmp_path}", "training.source=videos", "evaluation.own_predictor=false"]
    config = load_config(encoded, [*options, f"training.precision={precision}", "probe.epochs=1"])
    train.run(config)
    found: set[torch.dtype] = set()
    with recorded_dtypes(found):
        stage.run(config)
    # the probes themselves are trained in float32
    assert expected in found and found <= {expected, torch.float32}


def test_precision_is_what_a_device_can_and_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    for precision, dtype in (("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float32)):
        with as_trained(precision, "cpu"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    with as_trained("no", "cuda"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
