"""inspect-config: counts equal to those of models that are built, sizes by formula, and every problem at once."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from flcache.config import load_resolved
from flcache.encoder import EncoderSource, load_encoder
from flcache.errors import ConfigError
from flcache.pipelines import inspect_config
from flcache.predictor import build_predictor

KINETICS = "label,youtube_id,time_start,time_end,split\n" + "".join(f"run,video{i:06d},0,10,train\n" for i in range(5))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty folder, without a data set and without a network."""

    def refuse(*_: object) -> None:
        raise AssertionError("inspect-config reached for the network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KINETICS_400", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], name: str, *overrides: str) -> list[str]:
    inspect_config.run(load_resolved(name, overrides))
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def with_data(folder: Path, text: str = KINETICS) -> list[str]:
    (folder / "train.csv").write_text(text, encoding="utf-8")
    return ["dataset.root=.", "dataset.train=train.csv", "dataset.val=null"]


def test_the_shipped_experiment_in_an_empty_folder(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "vjepa2_kinetics_400")
    assert "hidden_size: 1024 configs/backbones/vjepa2.yaml:8" in lines
    assert "allow_leak: false default" in lines
    assert "encoder 303,885,312 0" in lines
    assert "shape 8 x 16 x 16 x 1024 (steps, rows, columns, channels)" in lines
    assert "bytes 4,194,304 a clip as float16 (4.2 MB)" in lines
    assert sum("KINETICS_400" in line for line in lines) == 3
    assert lines[lines.index("Conflicts") + 1] == "none"


def test_every_key_is_shown_with_its_origin(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("inherits: [a, demo]\nseed: 2\n", encoding="utf-8")
    lines = shown(capsys, "b.yaml", *with_data(tmp_path))
    assert "seed: 2 b.yaml:2" in lines and "train: train.csv command line" in lines
    assert "seed: 1 (a.yaml:1) -> 2 (b.yaml:2)" in lines


def test_counts_are_those_of_models_that_are_built(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overrides = [*with_data(tmp_path), "encoder_trainable=[layer.1, layernorm]", "training.source=videos"]
    config = load_resolved("demo", overrides).config
    source = EncoderSource(architecture=config.encoder.architecture, processor=config.encoder.processor)
    encoder = load_encoder(source, trainable=("layer.1", "layernorm"))
    total = sum(p.numel() for p in encoder.parameters())
    trainable = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    predictor = build_predictor(config.predictor, (16, 4, 4, 64))
    predicted = sum(p.numel() for p in predictor.parameters())
    lines = shown(capsys, "demo", *overrides)
    assert 0 < trainable < total and f"encoder {total:,} {trainable:,}" in lines
    assert f"predictor {predicted:,} {predicted:,}" in lines
    assert f"together {total + predicted:,} {trainable + predicted:,}" in lines


@pytest.mark.parametrize(
    ("rule", "clips"),
    [
        (["clip.clips_per_video=3"], "15"),
        (["clip.clips_per_video=null"], "10"),  # 10 s hold two clips of 4 s
        (["clip.fps=1", "clip.short=drop"], "0"),  # and none of 32 s
        (["clip.fps=null", "clip.stride=2"], "5"),
    ],
)
def test_bytes_of_the_whole_data_set(
    rule: list[str], clips: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = shown(capsys, "demo", *with_data(tmp_path), *rule)
    train = next(line for line in lines if line.startswith("train "))
    assert train.startswith(f"train 5 videos, {clips} clips, ")
    num_bytes = int(clips) * 16 * 4 * 4 * 64 * 2
    size = f"{num_bytes / 1e3:.1f} kB" if num_bytes else "0 bytes"
    assert train.endswith(f"{size}; 5 videos missing below dataset.root")


def test_clips_of_unknown_length_are_a_lower_bound(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overrides = with_data(tmp_path, "a b.mp4 0\nc.mp4 1\n")
    assert any(
        "2 videos, at least 2 clips" in x for x in shown(capsys, "demo", *overrides, "clip.clips_per_video=null")
    )
    assert any("2 videos, 6 clips" in x for x in shown(capsys, "demo", *overrides, "clip.clips_per_video=3"))


def test_every_problem_is_named_and_the_rest_still_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = ["encode.context=full", "encoder_trainable=true", "predictor.preset=tny", "dataset.val=gone.csv"]
    wrong.append("encoder.dtype=bfloat16")
    with pytest.raises(ConfigError) as error:
        shown(capsys, "demo", *with_data(tmp_path), "dataset.root=gone", *wrong)
    problems = str(error.value).splitlines()
    for words in (
        "already seen",
        "training.source=videos",
        'did you mean "tiny"',
        "gone.csv",
        "dataset.root: gone",
        "too coarse",
    ):
        assert sum(words in problem for problem in problems) == 1, words
    assert len(problems) == 6
    output = capsys.readouterr().out
    assert "16 x 4 x 4 x 64" in output and "5 videos, 5 clips" in output


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("clip.frames=15", "clip.frames"),
        ("encoder_trainable=[layer.99]", "layer.99"),
        ("encoder.architecture.model_type=vjepa3", "vjepa3"),
        ("clip.stride=2", "clip.stride"),
        ("training.context_steps=16", "choose 1 to 15"),
        ("training.anti_collapse=sigreg", "a frozen encoder cannot collapse"),
    ],
)
def test_a_problem_of_one_value(override: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        shown(capsys, "demo", *with_data(tmp_path), "training.source=videos", override)


def test_bytes_are_stated_without_measuring(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = shown(capsys, "demo", *with_data(tmp_path))
    assert lines[lines.index("Cost") + 1 :][:5] == [
        "encode once, writes 163.8 kB",
        "cache an epoch, reads 163.8 kB",
        "frozen an epoch, decodes and encodes 5 clips, stores nothing",
        "unfrozen an epoch, the same 5 clips with an encoder that trains",
        "hours are measured with --measure",
    ]
    assert "unknown until encoder and dataset.train can be read" in shown(capsys, "vjepa2_kinetics_400")


def test_hours_follow_from_clips_a_second() -> None:
    """3,600 training clips and 900 others: live 1 h an epoch, from the cache 0.1 h, encoding 2.5 h."""
    planned, rates = {"train": (3600, ""), "val": (900, "")}, {"encode": 0.5, "cache": 10.0, "frozen": 1.0}
    lines = inspect_config._cost(planned, 1000, {**rates, "unfrozen": 0.25})
    assert [line.split(": ")[-1] for line in lines[:4]] == ["2.5 h", "0.1 h", "1 h", "4 h"]
    assert "writes 4.5 MB" in lines[0] and "reads 3.6 MB" in lines[1]
    assert "after 3 epochs" in lines[4], "2 epochs take 2.7 h with the cache and 2 h without, 3 take 2.8 h and 3 h"
    assert lines[3:] != (without := inspect_config._cost(planned, 1000, rates)) and " h" not in without[3][-3:]
    assert "never" in inspect_config._cost(planned, 1000, {**rates, "cache": 1.0})[4]
    assert "not every source" in inspect_config._cost(planned, 1000, {"encode": 0.5, "cache": 10.0})[4]
    assert (
        "writes at least 3.6 MB: at least 2 h" in inspect_config._cost({"train": (3600, "at least ")}, 1000, rates)[0]
    )
