"""The official Kinetics CSV: `label,youtube_id,time_start,time_end,split[,is_cc]`.

Files are `<label>/<youtube_id>_<start:06d>_<end:06d>` with any extension, cut to the segment already; a test split has
no label column and no label folder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from flcache.errors import DataError
from flcache.videos.forms.listed import Row, Video
from flcache.videos.forms.source import Form, Source
from flcache.videos.forms.text import INDEX, check_commas, shown, table_rows
from flcache.videos.remote_path import Place

_REQUIRED = ("youtube_id", "time_start", "time_end")
_OFFICIAL = ("label", *_REQUIRED, "split")


def is_kinetics(header: Collection[str]) -> bool:
    """Whether a header has all that Kinetics needs."""
    return set(_REQUIRED) <= set(header)


def _is_header(source: Source) -> bool:
    """Whether the first line is a header, right or wrong, rather than a `path index` row."""
    line = source.first_line
    check_commas(source.path, line, _OFFICIAL)
    fields = {field.strip() for field in line.split(",")}
    return bool(fields & set(_OFFICIAL)) or ("," in line and not INDEX.fullmatch(line.split()[-1]))


def _rows(source: Source) -> list[Row]:
    rows = table_rows(source.path, source.text, _REQUIRED, expected=",".join(_OFFICIAL))
    return [(number, _video(source.path, number, row)) for number, row in rows]


def _video(path: Place, number: int, row: Mapping[str, str]) -> Video:
    try:
        start_s, end_s = float(row["time_start"]), float(row["time_end"])
        name = f"{row['youtube_id'].strip()}_{int(start_s):06d}_{int(end_s):06d}"
    except (ValueError, OverflowError):
        raise DataError(
            f"{path}:{number}: time_start {shown(row['time_start'])} and time_end {shown(row['time_end'])} must be "
            "seconds"
        ) from None
    if not row["youtube_id"].strip() or not 0 <= start_s < end_s:
        raise DataError(f"{path}:{number}: needs a youtube_id and 0 <= time_start < time_end; mend or remove the row")
    label = row.get("label", "").strip() or None
    return Video(name, f"{label}/{name}" if label else name, label, end_s - start_s)


KINETICS_CSV = Form(_is_header, _rows)
