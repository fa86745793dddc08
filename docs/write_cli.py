"""python docs/write_cli.py: writes docs/cli.md anew from the `--help` of every command; a test compares the two."""

from __future__ import annotations

from pathlib import Path

import click

from flcache.pipelines.cli import cli

PAGE = Path(__file__).resolve().parent / "cli.md"
HEAD = """# The command line

Written by `python docs/write_cli.py` from `--help`; do not edit.

`C` is a YAML file or the name of a shipped one, and `KEY=VALUE` changes one of its values, see
[configuration](configuration.md). Results go to stdout, notices and progress to stderr.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the data or the configuration is wrong: a line that says what, where, and what to do |
| 2 | wrong usage |
| 130 | interrupted |
| 143, 138, 129 | ended by SIGTERM, SIGUSR1, SIGHUP; training has written a checkpoint on the first two |
"""


def cli_page() -> str:
    """The page: one section a command."""
    return (
        HEAD
        + _section(cli, "flcache")
        + "".join(_section(cli.commands[name], f"flcache {name}") for name in sorted(cli.commands))
    )


def _section(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=100, help_option_names=["-h", "--help"])
    return f"\n## {name}\n\n```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(cli_page(), encoding="utf-8")
