"""One HTML page of a run: everything inline, nothing from a network, the same bytes for the same run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.filesize import decimal

from flcache.evaluation.report import charts, verdict
from flcache.evaluation.report.colours import MAX_CLIPS, heat_stops
from flcache.evaluation.report.tables import motion_table, number, quality_table
from flcache.evaluation.result import spoken

MAX_FAILURES = 200
"""At most so many are listed."""


@dataclass(frozen=True)
class Report:
    """The content of a page as plain values; the page leaves out what is None or empty."""

    name: str
    split: str
    evaluation: Mapping[str, Any] | None
    """The content of evaluation.json."""
    losses: Sequence[Mapping[str, float]]
    """The lines of metrics.jsonl: `step`, `loss/prediction`, `loss/copy_last`, `latents/...` and
    `validation/...`."""
    cache: Mapping[str, Any] | None
    """Result of `flcache.cache.summary`."""
    player: Mapping[str, Any] | None
    """Result of `player_content`."""
    provenance: Mapping[str, str]
    """Where the numbers come from: values by name."""
    config: str
    """The configuration of the run, as YAML."""
    leak: bool
    """True if the contexts had seen the future."""
    notes: Sequence[str] = ()
    """What the page lacks, and what to do about it."""


def write_report(report: Report, path: Path) -> None:
    """Write the page; `path` is replaced only once it is complete."""
    write_page(render(report), path)


def render(report: Report) -> str:
    """The page as HTML."""
    rows = verdict.evaluated_rows(report.evaluation)
    return fill_template(
        "page.html",
        report=report,
        verdict=verdict.verdict(report.evaluation, leak=report.leak),
        rows=rows,
        baselines=verdict.baselines(rows),
        has_intervals=verdict.has_intervals(rows),
        reference_chart=charts.reference_chart(rows) if rows else None,
        skill_chart=charts.skill_chart(rows) if rows else None,
        loss_chart=charts.loss_chart(report.losses),
        latents_chart=charts.latents_chart(report.losses),
        validation_chart=charts.validation_chart(report.losses, verdict.baselines(rows)),
        quality=quality_table(rows),
        motion=motion_table(rows),
        colour_clips=MAX_CLIPS,
        failure_kinds=_failure_kinds(report.cache),
        max_failures=MAX_FAILURES,
    )


def fill_template(name: str, **values: Any) -> str:
    """The HTML of a template, with all that its page needs inside."""
    environment = Environment(
        loader=PackageLoader("flcache.evaluation.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "size": decimal, "count": _count, "spoken": spoken}
    environment.globals |= {name: getattr(verdict, name) for name in ("interval", "outcome", "strongest")}
    inside = {"style": _inline("page.css"), "script": _inline("page.js"), "heat_stops": heat_stops()}
    return environment.get_template(name).render(**values, **inside)


def write_page(html: str, path: Path) -> None:
    """Write a page; `path` is replaced only once it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)


def _failure_kinds(cache: Mapping[str, Any] | None) -> list[tuple[str, int]]:
    """Stage and reason of failures with their number, the most frequent first."""
    failures = cache["failures"] if cache else []
    return Counter(f"{failure['stage']}: {failure['reason']}" for failure in failures).most_common()


def _inline(name: str) -> Markup:
    """A file of the template, to be inserted without escaping."""
    return Markup(files("flcache.evaluation.report").joinpath("template", name).read_text(encoding="utf-8"))


def _count(value: int) -> str:
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
