"""What README and docs tell a user to type works: commands, options, configuration and code."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from small_run import ENCODER, flcache, small_config

from flcache.cache import LatentCache
from flcache.config import load_config
from flcache.encoder import EncoderSource
from flcache.pipelines import encode
from flcache.pipelines.cli import cli
from flcache.predictor import load_predictor
from flcache.videos import write_dataset

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^ {4}|`)((?:\S*/)?flcache(?: [^`#\n]*)?)", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_is_short_and_its_test_command_is_what_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 100
    install, tests = (line.strip() for line in readme.splitlines() if line.strip().startswith("python3 -m venv"))
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert ".venv/bin/pytest" in tests and tests.replace(" install ", " install -q ") in ci
    assert install.endswith("flcache demo") and '/flcache" demo' in ci


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_exists(page: Path) -> None:
    for line in COMMAND.findall(page.read_text(encoding="utf-8")):
        name, *arguments = shlex.split(line.replace("[", "").replace("]", ""))[1:] or ["--help"]
        if name.startswith("-") or name in ("encode,", "COMMAND"):
            continue
        assert name in cli.commands, f"{page.name}: {line}"
        command = cli.commands[name]
        if isinstance(command, click.Group):
            command = command.commands[arguments[0]]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in arguments if word.startswith("--")} <= known, f"{page.name}: {line}"


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a demo of few videos was encoded, to be in."""
    monkeypatch.chdir(tmp_path)
    write_dataset(Path("flcache-demo/videos"), train_videos=16, val_videos=4)
    encode.run(load_config("demo"))
    return tmp_path


@pytest.mark.parametrize("page", ["python.md", "order.md", "reading.md"])
def test_the_code_of_a_page_runs_after_a_demo(page: str, demo: Path) -> None:
    found: dict[str, Any] = {}
    for code in blocks(ROOT / "docs" / page, "python"):
        exec(compile(code, page, "exec"), found)
    assert len(found["cache"]) == 16


def test_the_configuration_of_the_videos_page_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (configuration,) = blocks(ROOT / "docs" / "videos.md", "yaml")
    Path("my.yaml").write_text(configuration, encoding="utf-8")
    assert load_config("my.yaml").encoder.architecture["hidden_size"] == 1024


def smaller() -> list[str]:
    """What makes the shipped configurations small: another encoder, fewer steps."""
    content = small_config(Path(), Path())
    rooms = {name: content[name] for name in ("clip", "encode", "predictor", "training")}
    rooms["training"] |= {"validate_every": 6}
    del rooms["training"]["dir"]
    values = [f"{room}.{name}={json.dumps(value)}" for room, keys in rooms.items() for name, value in keys.items()]
    return ["encoder.name=", *(f"encoder.architecture.{name}={value}" for name, value in ENCODER.items()), *values]


def run_typed(page: Path, video: Path) -> list[str]:
    """Run every line of the page that begins with `flcache`, made smaller; returns the names of the commands."""
    lines = re.findall(r"^ {4}flcache (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    commands = [shlex.split(line, comments=True) for line in lines if not line.startswith("demo")]
    for command in commands:
        words = [str(video) if word == "VIDEO" else word for word in command]
        done = flcache(*words, *(smaller() if "--config" in words else []))
        assert done.returncode == 0, f"{command}: {done.stderr}"
    return [command[0] for command in commands]


def test_getting_started_runs_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a folder of videos and nothing else."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "written", train_videos=24, val_videos=0, size=32)
    Path("videos").mkdir()
    for number, path in enumerate(sorted(Path("written").rglob("*.mp4"))):
        path.rename(f"videos/{number}.mp4")
    configuration, other_encoder = blocks(ROOT / "docs" / "index.md", "yaml")
    Path("my.yaml").write_text(configuration + other_encoder, encoding="utf-8")
    assert load_config("my.yaml").encoder == EncoderSource(name="path/to/model")
    Path("my.yaml").write_text(configuration, encoding="utf-8")
    commands = run_typed(ROOT / "docs" / "index.md", Path("videos/0.mp4"))
    assert commands[:5] == ["doctor", "inspect-config", "encode", "inspect-cache", "train"]
    assert commands[5:] == ["evaluate", "report", "verify", "export", "predict"]
    assert len(LatentCache("latents", "train")) == 22 and len(LatentCache("latents", "val")) == 2
    assert "<html" in Path("runs/first/report.html").read_text(encoding="utf-8")


def test_the_readme_runs_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On videos that lie as those of Kinetics do."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "kinetics"
    write_dataset(root, train_videos=16, val_videos=4, size=32)
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / f"{split}.csv").rename(root / "annotations" / f"{split}.csv")
    monkeypatch.setenv("KINETICS_400", str(root))
    commands = run_typed(ROOT / "README.md", next(root.rglob("v*.mp4")))
    assert commands[:5] == ["doctor", "inspect-config", "encode", "train", "evaluate"]
    assert commands[5:] == ["report", "export", "predict"]


def test_the_finetuning_example_runs_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fewer videos of the demo, and for fewer steps."""
    page = ROOT / "docs" / "finetune.md"
    monkeypatch.chdir(tmp_path)
    write_dataset(Path("flcache-demo/videos"), train_videos=16, val_videos=4)
    video = next(Path("flcache-demo/videos").rglob("v*.mp4"))
    lines = [line.split() for line in re.findall(r"^ {4}flcache (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)]
    assert [line[0] for line in lines] == ["train", "export", "encode", *["train", "evaluate"] * 2, "export", "predict"]
    for line in lines:
        few = ["training.steps=2"] if line[0] == "train" else []
        done = flcache(*(str(video) if word == "VIDEO" else word for word in line), *few)
        assert done.returncode == 0, done.stderr
    (code,) = blocks(page, "python")
    found: dict[str, object] = {}
    exec(compile(code, "finetune.md", "exec"), found)
    assert found["future"].shape == (1, 8, 4, 4, 64)  # type: ignore[attr-defined]
    first = load_predictor("tuned/model/predictor")
    assert first.card.fingerprint == LatentCache("tuned/cache").fingerprint
    assert first(found["context"]).shape == found["future"].shape  # type: ignore[attr-defined]
    assert {path.name for path in Path("tuned/predictions").iterdir()} == {f"{video.stem}.npz", "predictions.html"}
