"""The schema: defaults, types, errors with lines and near names, and configurations that survive a round trip."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flcache.config import Config, as_dict, load_config, load_resolved, print_config, to_yaml
from flcache.config.inherit import shipped_names
from flcache.encoder import ContextRule
from flcache.errors import ConfigError
from flcache.training import Objective


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty folder, without a data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KINETICS_400", raising=False)
    return tmp_path


def load(text: str, *overrides: str) -> Config:
    Path("my.yaml").write_text(text, encoding="utf-8")
    return load_config("my.yaml", overrides)


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load(text, *overrides)
    return str(error.value).splitlines()


def test_an_empty_file_is_the_defaults() -> None:
    assert load("") == load("# nothing\n") == load("encoder: {}\n") == Config()


def test_values_get_the_types_of_the_schema() -> None:
    config = load(
        "encoder_trainable: [layer.3]\nclip: {fps: 4}\ntraining: {steps: 1e3, betas: [0, 0.5], precision: no}\n"
    )
    assert config.encoder_trainable == ("layer.3",)
    assert config.training.betas == (0.0, 0.5) and isinstance(config.clip.fps, float)
    assert config.training.steps == 1000 and isinstance(config.training.steps, int)
    assert config.training.precision == "no"


@pytest.mark.parametrize(("then", "now"), [("null", False), ("2", True), ("true", True), ("false", False)])
def test_pool_of_an_earlier_version_still_loads(then: str, now: bool) -> None:
    assert load(f"encode: {{keep: {{pool: {then}}}}}\n").encode.keep.pool is now
    assert problems("encode: {keep: {pool: 4}}\n") == ["my.yaml:1: encode.keep.pool: expected true or false, got 4"]


def test_configuration_of_an_earlier_checkpoint_loads() -> None:
    files = sorted((Path(__file__).parent / "fixtures").glob("*/training/checkpoints/*/config.yaml"))
    assert files
    for file in files:
        assert load_config(file).encode.keep.pool is False


def test_unknown_keys_fail_all_at_once_with_line_and_near_name() -> None:
    text = "encoder:\n  nme: x\ntrainng:\n  steps: 3\ntraining.steps: 3\nbatchsize: 1\ninherit: [a]\nseed: {a: 1}\n"
    assert problems(text, "clip.fsp=2", "zzz=1") == [
        "my.yaml:2: encoder.nme: unknown key, did you mean encoder.name?",
        "my.yaml:4: trainng.steps: unknown key, did you mean training.steps?",
        "my.yaml:5: training.steps: unknown key: write it nested, training: and the rest indented below it",
        "my.yaml:6: batchsize: unknown key, did you mean probe.batch_size?",
        "my.yaml:7: inherit: unknown key, did you mean inherits? It is a list of files at the top of a file",
        "my.yaml:8: seed.a: unknown key, did you mean seed?",
        "command line: clip.fsp: unknown key, did you mean clip.fps?",
        "command line: zzz: unknown key",
    ]


def test_wrong_values_fail_all_at_once_with_line_and_what_is_allowed() -> None:
    text = (
        "clip:\n  short: crop\n  frames: 0\n  fps: fast\nseed: true\nencoder_trainable: 3\ncache:\n  dir: 3\n"
        "  codec: zip\ntraining:\n  betas: [1]\n  learning_rate: .inf\nencode:\n  device: gpu\n"
        "dataset:\n  max_missing_fraction: 2\n"
    )
    assert problems(text, "encode.context=whole") == [
        "my.yaml:2: clip.short: expected one of pad, drop, got crop",
        "my.yaml:3: clip.frames: expected a whole number of at least 1, got 0",
        "my.yaml:4: clip.fps: expected a number above 0 or null, got fast",
        "my.yaml:5: seed: expected a whole number, got true",
        "my.yaml:6: encoder_trainable: expected true or false or a list of text, got 3",
        "my.yaml:8: cache.dir: expected text (a path) or null, got 3",
        "my.yaml:9: cache.codec: expected text that is one of float32, float16, bfloat16, int8, got zip",
        "my.yaml:11: training.betas: expected a list of 2, each a number of at least 0 and below 1, got [1]",
        "my.yaml:12: training.learning_rate: expected a number above 0, got .inf",
        "my.yaml:14: encode.device: expected text such as auto, cpu, mps, cuda or cuda:1, got gpu",
        "my.yaml:16: dataset.max_missing_fraction: expected a number from 0 to 1, got 2",
        "command line: encode.context: expected one of step, window, prefix, full, got whole",
    ]


def test_values_that_contradict_each_other_fail_all_at_once() -> None:
    text = "clip:\n  stride: 2\nencode:\n  prefix_steps: 3\ntraining:\n  horizon_weights: [0, 0]\n"
    assert [line.split(":")[0] for line in problems(text)] == [
        "clip.fps is 4.0 and clip.stride is 2; set one of them and the other to null",
        "encode.prefix_steps",
        "training.horizon_weights",
    ]


def test_keys_of_inline_options_stand_among_those_of_their_section() -> None:
    config = load("encode: {context: window, window: 2, batch_size: 3}\ntraining: {loss: l2, steps: 5}\n")
    assert config.encode.context == ContextRule("window", 2) and config.encode.batch_size == 3
    assert config.training.objective == Objective("l2") and config.training.steps == 5
    assert as_dict(config)["encode"]["context"] == "window" and "mode" not in as_dict(config)["encode"]
    assert problems("encode: {mode: step}\ntraining: {objective: {loss: l2}}\n") == [
        "my.yaml:1: encode.mode: unknown key, did you mean encoder.name?",
        "my.yaml:2: training.objective.loss: unknown key, did you mean training.loss?",
    ]


def test_a_section_needs_keys() -> None:
    keys = "allow_outside, arrays, labels, max_missing_fraction, root, train, val, val_fraction"
    assert problems("dataset: here\n") == [f"my.yaml:1: dataset: expected keys below it: {keys}"]


def test_free_form_sections_take_any_key() -> None:
    config = load("encoder:\n  architecture:\n    model_type: vit\n    rope: {theta: 10}\n", "encoder.processor.size=3")
    assert config.encoder.architecture == {"model_type": "vit", "rope": {"theta": 10}}
    assert config.encoder.processor == {"size": 3}
    assert problems("encoder:\n  architecture: vit\n") == [
        "my.yaml:2: encoder.architecture: expected keys and values, got vit"
    ]


def test_origins_name_file_and_line_of_what_was_set() -> None:
    Path("base.yaml").write_text("seed: 1\nclip:\n  frames: 8\n", encoding="utf-8")
    Path("my.yaml").write_text("inherits: [base]\nclip:\n  fps: 2\n", encoding="utf-8")
    resolved = load_resolved("my.yaml", ["seed=5", "encoder.architecture.x=1"])
    assert {key: str(origin) for key, origin in resolved.origins.items()} == {
        "seed": "command line",
        "clip.frames": "base.yaml:3",
        "clip.fps": "my.yaml:3",
        "encoder.architecture.x": "command line",
    }
    assert resolved.config.seed == 5 and not resolved.conflicts


def test_a_path_with_an_unset_variable_fails_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "dataset:\n  root: here\n  train: ${oc.env:KINETICS_400}/train.csv\n"
    config = load(text)
    assert config.dataset.train is None and config.require("dataset.root") == "here"
    with pytest.raises(ConfigError, match=r"dataset\.train: .*KINETICS_400 is not set \(my\.yaml:3\).*dataset\.train="):
        config.require("dataset.train")
    with pytest.raises(ConfigError, match=r"dataset\.val is not set; give dataset\.val=PATH"):
        config.require("dataset.val")
    assert load(text, "dataset.train=x.csv").require("dataset.train") == "x.csv"
    monkeypatch.setenv("KINETICS_400", "/data")
    assert load(text).dataset.train == "/data/train.csv"


def test_any_other_value_with_an_unset_variable_fails_at_once() -> None:
    assert problems("seed: 1\nencoder:\n  name: ${oc.env:KINETICS_400}\n") == [
        "my.yaml:3: encoder.name: the environment variable KINETICS_400 is not set"
    ]


def test_the_shipped_experiment_is_the_stated_encoder_and_needs_only_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("vjepa2_kinetics_400")
    assert config.encoder.name == "facebook/vjepa2-vitl-fpc64-256" and config.encoder_trainable is False
    assert sorted(config.unset) == ["dataset.root", "dataset.train", "dataset.val"]
    monkeypatch.setenv("KINETICS_400", "/data/k400")
    config = load_config("vjepa2_kinetics_400")
    assert config.require("dataset.train") == "/data/k400/annotations/train.csv" and not config.unset


def test_every_shipped_configuration_loads_without_conflicts() -> None:
    names = shipped_names()
    assert names
    for name in names:
        assert not load_resolved(name).conflicts


def test_yaml_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", "a: b")
    for name in shipped_names():
        config = load_config(name, ["training.dir=${oc.env:RUN}", "encoder_trainable=[a, b]", "seed=3"])
        assert load(to_yaml(config)) == config


def test_print_config_prints_what_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config("demo")
    print_config(config)
    assert load(capsys.readouterr().out) == config


def test_the_page_lists_every_key_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| \S.*\|$", page, flags=re.MULTILINE)
    defaults = dict(leaves(as_dict(Config())))
    assert {key: yaml.safe_load(default) for key, default in rows} == defaults


def leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested configuration by its dotted key; an empty mapping is a value."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", list(value) if isinstance(value, tuple) else value


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    Path("example.yaml").write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert load_config("example.yaml").clip.fps == 4
    exec(page.split("```python\n")[1].split("```")[0], {})
