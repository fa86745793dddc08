"""What README and docs tell a user to type works: commands, options, configuration and code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from small_run import flcache

from flcache.cache import LatentCache
from flcache.config import load_config
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


def test_the_guides_configuration_and_code_run(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (configuration,) = blocks(ROOT / "docs" / "guide.md", "yaml")
    _, code = blocks(ROOT / "docs" / "guide.md", "python")  # the first one: tests/predictor/test_foreign_predictor.py
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(configuration, encoding="utf-8")
    assert load_config("my.yaml").encoder.architecture["hidden_size"] == 1024
    data = [f"dataset.root={videos}", f"dataset.train={videos}/train.csv", f"dataset.val={videos}/val.csv"]
    encode.run(load_config("demo", data))
    found: dict[str, object] = {}
    exec(compile(code, "guide.md", "exec"), found)
    assert len(found["cache"]) == 24 and found["batch"].target.shape == (8, 8, 4, 4, 64)  # type: ignore


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
