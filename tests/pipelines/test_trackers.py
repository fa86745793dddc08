"""`training.trackers`: what each of them got is what `metrics.jsonl` has."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from forked import Forked, command_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flcache.config import load_config
from flcache.errors import ConfigError, TrainingError
from flcache.pipelines import train
from flcache.training import read_metrics


class Kept(GeneralTracker):
    """A tracker from outside the package."""

    name, requires_logging_directory, tracker = "kept", False, None
    happened: list[Any]

    def __init__(self, project: str) -> None:
        super().__init__()
        Kept.happened = [project]

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        Kept.happened.append(values["training"]["steps"])

    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        Kept.happened.append((step, values))

    def finish(self) -> None:
        Kept.happened.append("finished")


def lines(folder: Path) -> list[dict[str, float]]:
    return read_metrics(folder / "metrics.jsonl")


def test_tensorboard_has_the_metrics_of_a_resumed_run_once(encoded: Path, tmp_path: Path) -> None:
    settings = [f"training.dir={tmp_path}", "training.checkpoint_every=2"]
    train.run(load_config(encoded, [*settings, "training.steps=4"]))
    train.run(load_config(encoded, [*settings, "training.steps=6"]), resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in lines(tmp_path)]


def test_no_tracker_is_needed_and_others_get_every_logged_step(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "kept", Kept)
    train.run(load_config(encoded, [f"training.dir={tmp_path}", "training.trackers=[kept]", "training.log_every=4"]))
    assert not (tmp_path / "tensorboard").exists()
    expected = [(int(line.pop("step")), line) for line in lines(tmp_path)]
    assert [step for step, _ in expected] == [1, 4, 6]
    assert Kept.happened == ["flcache", 6, *expected, "finished"]
    train.run(load_config(encoded, [f"training.dir={tmp_path / 'none'}", "training.trackers=[]"]))
    assert sorted(path.name for path in (tmp_path / "none").iterdir()) == ["checkpoints", "metrics.jsonl"]


def test_dvclive_gets_names_that_are_no_folders(encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes `loss/copy_last` for a value in a folder `loss`, where there is a value `loss`."""
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "kept", Kept)
    monkeypatch.setattr(Kept, "name", "dvclive")
    train.run(load_config(encoded, [f"training.dir={tmp_path}", "training.trackers=[kept]"]))
    _, values = Kept.happened[-2]
    assert values["loss.copy_last"] == lines(tmp_path)[-1]["loss/copy_last"] and not any("/" in name for name in values)


def test_a_tracker_that_is_unknown_or_missing_or_broken_is_one_line_before_the_first_step(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = next(name for name in LOGGER_TYPE_TO_CLASS if name not in map(str, get_available_trackers()))
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "kept", Kept)
    monkeypatch.setattr(Kept, "start", lambda self: 1 / 0)
    for name, kind, message in (
        ("wand", ConfigError, 'unknown "wand"; choose from .*wandb'),
        (missing, ConfigError, f'{missing} is not installed; run "pip install {missing}"'),
        ("kept", TrainingError, "kept does not start: division by zero"),
    ):
        folder = tmp_path / name
        with pytest.raises(kind, match=rf"training\.trackers: {message}"):
            train.run(load_config(encoded, [f"training.dir={folder}", f"training.trackers=[tensorboard, {name}]"]))
        assert not (folder / "checkpoints").exists()


def test_wandb_offline_has_the_metrics_and_the_configuration(encoded: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip('no wandb: pip install "flcache[wandb]"')
    settings = [f"training.dir={tmp_path}", "training.trackers=[wandb]", "training.steps=3"]
    offline = {"WANDB_MODE": "offline", "HOME": str(tmp_path / "home")}
    done = Forked(command_line, "train", "--config", encoded, *settings, environment=offline).wait()
    assert done.returncode == 0, done.stderr
    history, configured = read_wandb(next((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")))
    assert [{name: line[name] for name in line if not name.startswith("_")} for line in history] == [
        {name: value for name, value in line.items() if name != "step"} for line in lines(tmp_path)
    ]
    assert [line["_step"] for line in history] == [1, 2, 3]
    assert json.loads(configured["training"])["steps"] == 3


def read_wandb(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """History and configuration in the file of an offline run: a LevelDB log of protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, records, part, at = path.read_bytes(), [], b"", 7
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(part))
            part = b""
    history = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    updates = [update for record in records for update in (*record.config.update, *record.run.config.update)]
    return history, {".".join(update.nested_key) or update.key: update.value_json for update in updates}
