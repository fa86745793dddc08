"""flcache doctor [--config C] [KEY=VALUE ...] [--json]: what this machine lacks, before it is missed.

Every check is tried for real: videos are made and decoded, files written and read. Nothing is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flcache.config import Config
from flcache.errors import ConfigError

from . import packages, places
from .finding import Finding, checked

_MARKS = {"ok": "ok", "note": "note", "wrong": "WRONG"}


def run(config: Config, *, is_given: bool, as_json: bool) -> None:
    """Print a line for each check. Raises ConfigError if what the configuration that `is_given` needs does not work."""
    found = list(findings(config))
    if as_json:
        print(json.dumps([asdict(finding) for finding in found]))
    else:
        Console().print(_table(found))
    lacking = [finding.name for finding in found if finding.state == "wrong" and finding.needed]
    if is_given and lacking:
        raise ConfigError(f"this configuration needs what does not work here: {', '.join(lacking)}")


def findings(config: Config) -> Iterator[Finding]:
    """All checks, one after the other; one that breaks does not end the others."""
    reinstall = "pip install --force-reinstall flcache"
    attempt = partial(checked, mend=reinstall, needed=True)
    yield packages.python()
    yield attempt("torch", packages.torch)
    yield attempt("torchvision", packages.torchvision)
    yield attempt("transformers", packages.transformers)
    yield attempt("GPU", lambda: packages.gpu(config))
    yield attempt("bfloat16", lambda: packages.bfloat16(config))
    try:
        from . import decoding

        yield from decoding.findings()
    except Exception as error:  # such as PyAV without its libraries
        yield Finding("decoding", "wrong", f"{type(error).__name__}: {error}", reinstall, True)
    yield attempt("shared memory", places.shared_memory)
    yield attempt("disk", lambda: places.disk(config))
    yield attempt("encoder", lambda: places.hub(config))
    yield checked("Ray", packages.ray, mend='pip install --force-reinstall "flcache[ray]"', needed=False)


def _table(found: list[Finding]) -> Table:
    table = Table("check", "", "found", box=SIMPLE_HEAD)
    for finding in found:
        mend = f"\nmend: {finding.mend}" if finding.mend else ""
        table.add_row(finding.name, _MARKS[finding.state], escape(f"{finding.found}{mend}"))
    return table
