"""Something-Something v2: `train.json` or `validation.json`, a list of {"id", "label", "template", "placeholders"}.

Files are `<id>` with any extension, as published `.webm`. The label is the template without its brackets, as
`labels.json` spells the classes; `test.json` has ids alone.
"""

from __future__ import annotations

from typing import Any

from flcache.errors import DataError
from flcache.videos.forms.labels import read_json, read_labels
from flcache.videos.forms.listed import Row, Video
from flcache.videos.forms.source import Form, Source
from flcache.videos.forms.text import shown
from flcache.videos.remote_path import Place


def _takes(source: Source) -> bool:
    return source.path.suffix == ".json"


def _rows(source: Source) -> list[Row]:
    entries = read_json(source.path, source.text)
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{source.path}: not a list of {{"id": ..., "template": ...}}, as Something-Something v2 has')
    classes = set(read_labels(source.labels).values()) if source.labels else None
    rows = [(number, _video(source.path, number, entry)) for number, entry in enumerate(entries, 1)]
    for number, video in rows:
        if classes is not None and video.label is not None and video.label not in classes:
            raise DataError(f"{source.path}: entry {number}: {source.labels} has no class {shown(video.label)}")
    return rows


def _video(path: Place, number: int, entry: Any) -> Video:
    fields = entry if isinstance(entry, dict) else {}
    name, template = str(fields.get("id", "")).strip(), fields.get("template")
    if not name.isalnum() or not (template is None or isinstance(template, str)):
        raise DataError(f'{path}: entry {number}: needs an "id" and a "template" of text; mend or remove it')
    label = None if template is None else template.replace("[", "").replace("]", "").strip() or None
    return Video(name, name, label, None)


SOMETHING_SOMETHING = Form(_takes, _rows)
