"""A CSV with a header: `path`, and if they are there `label`, `start`, `end` (seconds) and `split`; others are ignored.

A row with `start` or `end` is that segment of its file, and several rows may share a file. A `split` column makes one
file serve every split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath

from flcache.errors import DataError
from flcache.videos.forms.kinetics_csv import is_kinetics
from flcache.videos.forms.listed import Row, Video, without_extension
from flcache.videos.forms.source import Form, Source
from flcache.videos.forms.text import check_commas, shown, table_rows
from flcache.videos.remote_path import Place

COLUMNS = ("path", "label", "start", "end", "split")
_SPLITS = {"validation": "val", "valid": "val", "training": "train"}
"""Other words for a split."""


def splits_in(source: Source) -> set[str]:
    """The splits that a `split` column names."""
    return {_split(row) for _, row in _table(source) if "split" in row}


def _takes(source: Source) -> bool:
    check_commas(source.path, source.first_line, ("path",))
    fields = {field.strip() for field in source.first_line.split(",")}
    return "path" in fields and not is_kinetics(fields)


def _rows(source: Source) -> list[Row]:
    rows, wanted = list(_table(source)), source.split
    kept = [(number, row) for number, row in rows if wanted is None or "split" not in row or _split(row) == wanted]
    if not kept:
        there = ", ".join(sorted({shown(row["split"]) for _, row in rows})[:5])
        raise DataError(f"{source.path}: no row of the split {wanted}; its column `split` has {there}")
    return [(number, _video(source.path, number, row)) for number, row in kept]


def _table(source: Source) -> list[tuple[int, dict[str, str]]]:
    return list(table_rows(source.path, source.text, ("path",), expected=",".join(COLUMNS)))


def _split(row: Mapping[str, str]) -> str:
    name = row["split"].strip().lower()
    return _SPLITS.get(name, name)


def _video(path: Place, number: int, row: Mapping[str, str]) -> Video:
    name, label = row["path"].strip(), row.get("label", "").strip() or None
    if PurePosixPath(name).name in ("", ".."):
        raise DataError(f"{path}:{number}: {shown(name)} is no path of a file; mend or remove the row")
    start_s, end_s = (_seconds(path, number, row, column) for column in ("start", "end"))
    if end_s is not None and (start_s or 0.0) >= end_s:
        raise DataError(f"{path}:{number}: start {start_s or 0} is not before end {end_s}; mend or remove the row")
    duration_s = None if end_s is None else end_s - (start_s or 0.0)
    return Video(without_extension(name), name, label, duration_s, start_s, end_s)


def _seconds(path: Place, number: int, row: Mapping[str, str], column: str) -> float | None:
    """The seconds in a column; None where there are none."""
    text = row.get(column, "").strip()
    try:
        seconds = float(text) if text else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 <= seconds < math.inf:
        raise DataError(f"{path}:{number}: {column} {shown(text)} must be seconds from the start of the file; mend it")
    return seconds


HEADER_CSV = Form(_takes, _rows)
