"""The file that names the classes: `index label` lines, or the `labels.json` of Something-Something v2."""

from __future__ import annotations

import json
from typing import Any

from flcache.errors import DataError
from flcache.videos.forms.text import INDEX, lines, read_text, shown
from flcache.videos.remote_path import Place


def read_labels(path: Place) -> dict[int, str]:
    """The label file's classes by index, in its order. Raises DataError naming the line."""
    if path.suffix == ".json":
        return _read_json_labels(path)
    labels: dict[int, str] = {}
    for number, line in enumerate(lines(read_text(path)), 1):
        if not line.strip():
            continue
        index, _, label = line.strip().partition(" ")
        if not INDEX.fullmatch(index) or not label.strip() or int(index) in labels:
            raise DataError(f"{path}:{number}: expected a new `index label`, got {shown(line.strip())}")
        labels[int(index)] = label.strip()
    if not labels:
        raise DataError(f"{path}: the label file is empty; expected `index label` lines")
    return labels


def read_json(path: Place, text: str) -> Any:
    """Raises DataError naming the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}; fetch the file again") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not JSON that can be read; fetch the file again") from None


def _read_json_labels(path: Place) -> dict[int, str]:
    """`{"label": "index"}`"""
    found = read_json(path, read_text(path))
    named = found if isinstance(found, dict) else {}
    labels = {int(index): label for label, index in named.items() if INDEX.fullmatch(str(index))}
    if not named or len(labels) < len(named):
        raise DataError(f'{path}: expected classes as {{"label": "index"}}, each with an index of its own')
    return labels
