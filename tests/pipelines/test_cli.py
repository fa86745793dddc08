"""The command line from outside: real processes, exit codes, one line for a mistake, and docs that say what it says."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Forked, command_line, run_forked

from flcache.pipelines.cli import cli

REPOSITORY = Path(__file__).resolve().parents[2]
MAIN = "from flcache.pipelines.cli import main; main()"
HEAVY = ("torch", "transformers", "pandas", "pyarrow", "numpy", "rich", "omegaconf")


def flcache(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments], cwd=folder, text=True, capture_output=True, timeout=120, check=False
    )


def mistake(*arguments: str, folder: Path) -> str:
    """The one line that a user's mistake gives."""
    done = flcache(*arguments, folder=folder)
    assert done.returncode == 1, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), done.stderr
    return lines[0]


def test_the_page_says_what_help_says() -> None:
    """Run `python docs/write_cli.py` where this fails."""
    page = runpy.run_path(str(REPOSITORY / "docs" / "write_cli.py"))["cli_page"]()
    assert (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8") == page
    assert all(f"## flcache {name}\n" in page and command.help for name, command in cli.commands.items())


def test_help_of_every_command_loads_no_library(tmp_path: Path) -> None:
    assert len(cli.commands) >= 6
    code = (
        "import sys; from flcache.pipelines.cli import _exit_code\n"
        "codes = [_exit_code([*command.split(), '--help']) for command in sys.argv[1:]]\n"
        f"print([name for name in {HEAVY} if name in sys.modules], set(codes), file=sys.stderr)"
    )
    arguments = [sys.executable, "-c", code, "", *cli.commands]
    done = subprocess.run(arguments, cwd=tmp_path, text=True, capture_output=True, timeout=60, check=True)
    assert done.stderr.strip() == "[] {0}"
    assert done.stdout.count("Usage: flcache") == len(cli.commands) + 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nope"],
        ["encode"],
        ["train", "--config", "demo", "steps"],
        ["encode", "--config", "demo", "--shards", "4/4"],
        ["encode", "--config", "demo", "--shards", "half"],
        ["inspect-cache"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], tmp_path: Path) -> None:
    done = flcache(*arguments, folder=tmp_path)
    assert done.returncode == 2 and "Usage: flcache" in done.stderr and "Traceback" not in done.stderr


def test_version(tmp_path: Path) -> None:
    done = flcache("--version", folder=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("flcache 0.")


@pytest.mark.parametrize("command", ["encode", "train", "evaluate", "inspect-config"])
def test_a_wrong_key_or_file_is_one_line(command: str, tmp_path: Path) -> None:
    text = mistake(command, "--config", "demo", "training.stepz=3", folder=tmp_path)
    assert text == "Error: command line: training.stepz: unknown key, did you mean training.steps?"
    assert "no such file" in mistake(command, "--config", "gone.yaml", folder=tmp_path)


def test_every_wrong_key_has_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("sed: 1\nclip:\n  frame: 3\n", encoding="utf-8")
    done = flcache("train", "--config", "my.yaml", folder=tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines() == [
        "Error: my.yaml:1: sed: unknown key, did you mean seed?",
        "Error: my.yaml:3: clip.frame: unknown key, did you mean clip.frames?",
    ]


def test_a_command_without_its_paths_names_the_variable(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "KINETICS_400"}
    arguments = [sys.executable, "-c", MAIN, "encode", "--config", "vjepa2_kinetics_400"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 1 and "dataset.train: the environment variable KINETICS_400" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_missing_cache_is_one_line(tmp_path: Path) -> None:
    assert "gone" in mistake("inspect-cache", "gone", folder=tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        arguments = [sys.executable, "-c", MAIN, "--help"]
        done = subprocess.run(arguments, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [sys.executable, "-c", MAIN, "--help"]
    done = subprocess.run(arguments, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_an_interrupt_is_one_line_and_exits_130(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slow.csv")
    table = tmp_path / "slow.csv"
    process = Forked(command_line, "inspect-config", "--config", "demo", f"dataset.train={table}")
    with table.open("w"):  # opens when the process reads from it
        process.send_signal(signal.SIGINT)
        ended = process.wait()
    assert (ended.returncode, ended.stderr.strip()) == (130, "Error: interrupted")


def test_conflicts_are_notices_on_stderr_before_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("seed: 1\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("inherits: [a]\nseed: 2\n", encoding="utf-8")
    done = run_forked(command_line, "train", "--config", "b.yaml")
    assert done.stderr.splitlines() == [
        "Notice: seed: 1 (a.yaml:1) -> 2 (b.yaml:2)",
        "Error: training.dir is not set; give training.dir=PATH, or write it in the configuration file",
    ]
