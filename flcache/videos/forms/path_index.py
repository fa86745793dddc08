"""Headerless lists: one `path index` a line, where the path may hold spaces and `index` is the last field."""

from __future__ import annotations

from pathlib import PurePosixPath

from flcache.errors import DataError
from flcache.videos.forms.labels import read_labels
from flcache.videos.forms.listed import Row, Video, without_extension
from flcache.videos.forms.source import Form, Source
from flcache.videos.forms.text import INDEX, OTHER_DELIMITERS, lines, shown
from flcache.videos.remote_path import Place


def _rows(source: Source) -> list[Row]:
    path, labels, rows = source.path, read_labels(source.labels) if source.labels else None, []
    for number, line in enumerate(lines(source.text), 1):
        if not line.strip():
            continue
        name, index = _split_index(path, number, line.strip())
        if labels is not None and index not in labels:
            raise DataError(f"{path}:{number}: the label file has no index {index}; mend the row or the label file")
        label = labels[index] if labels is not None else str(index)
        rows.append((number, Video(without_extension(name), name, label, None)))
    return rows


def _split_index(path: Place, number: int, line: str) -> tuple[str, int]:
    name, _, index = (part.strip() for part in line.rpartition(" "))
    if INDEX.fullmatch(index) and PurePosixPath(name).name not in ("", ".."):
        return name, int(index)
    found = next((name for mark, name in {",": "comma", **OTHER_DELIMITERS}.items() if mark in line), None)
    hint = f" separated by a space, not by a {found}" if found else ""
    raise DataError(f"{path}:{number}: expected `path index`{hint}, got {shown(line)}; mend or remove the row")


PATH_INDEX = Form(lambda source: True, _rows)
"""Whatever is of no other form."""
