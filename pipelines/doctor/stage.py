"""flcache doctor [--config C] [KEY=VALUE ...] [--json]: what this machine lacks, before it is missed.

Every check is tried for real: videos are decoded, a file is written and read. Nothing is kept.
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
    attempt = partial(checked, mend="pip install --force-reinstall flcache")
    yield packages.python()
    yield from attempt("torch", lambda: [packages.torch()])
    yield from attempt("torchvision", lambda: [packages.torchvision()])
    yield from attempt("transformers", lambda: [packages.transformers()])
    yield from attempt("GPU", lambda: [packages.gpu(config)])
    yield from attempt("bfloat16", lambda: [packages.bfloat16(config)])
    yield from attempt("decoding", _decoding)
    yield from attempt("shared memory", lambda: [places.shared_memory()])
    yield from attempt("disk", lambda: [places.disk(config)])
    yield from attempt("bucket", lambda: places.bucket(config))
    yield from attempt("bucket, dataset", lambda: places.dataset_bucket(config))
    yield from attempt("encoder", lambda: [places.hub(config)])
    ray = 'pip install --force-reinstall "flcache[ray]"'
    yield from checked("Ray", lambda: [packages.ray()], mend=ray, needed=False)


def _decoding() -> Iterator[Finding]:
    from . import decoding  # imports PyAV, which may be broken

    return decoding.findings()


def _table(found: list[Finding]) -> Table:
    table = Table("check", "", "found", box=SIMPLE_HEAD)
    for finding in found:
        mend = f"\nmend: {finding.mend}" if finding.mend else ""
        table.add_row(finding.name, _MARKS[finding.state], escape(f"{finding.found}{mend}"))
    return table
