"""The demo runs the command lines that it prints, and each of them is one that a user may type."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from flcache.config import load_config
from flcache.pipelines import demo
from flcache.pipelines.cli import cli


@pytest.mark.parametrize("folder", ["flcache-demo", "some where"])
def test_what_is_printed_is_what_is_run(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TRAIN_VIDEOS", 4)
    monkeypatch.setattr(demo, "VAL_VIDEOS", 2)
    ran: list[Sequence[str]] = []
    demo.run(Path(folder), ran.append)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert [shlex.split(line)[1:] for line in printed] == [["flcache", *arguments] for arguments in ran]
    assert [arguments[0] for arguments in ran] == ["encode", "train", "evaluate", "report"]
    above = click.Context(cli, **cli.context_settings)
    contexts = [cli.commands[name].make_context(name, list(rest), parent=above) for name, *rest in ran]
    for context in contexts[:3]:
        config = load_config(context.params["config"], context.params["overrides"])
        assert Path(config.require("dataset.train")).is_file()
        assert config.training.dir == f"{folder}/training" and config.cache.dir == f"{folder}/cache"
    assert contexts[1].params["resume"] is True and contexts[3].params["directory"] == folder
