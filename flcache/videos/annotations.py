"""Annotation files: which videos a split holds, how long each is meant to be, and where each lies below the root.

Two forms are read. The official Kinetics CSV (`label,youtube_id,time_start,time_end,split[,is_cc]`) names files
`<label>/<youtube_id>_<start:06d>_<end:06d>` without an extension; its test split has no label column and no label
folder. The headerless form has one `path index` a line, where the path may hold spaces and `index` is the last field.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from flcache.errors import DataError

EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".flv", ".wmv", ".ts")
"""Tried in this order where an annotation names no extension."""

_REQUIRED = ("youtube_id", "time_start", "time_end")
_OFFICIAL = ("label", *_REQUIRED, "split")
_MAX_NAME = 64  # a tar member name has 100 bytes, of which clip number, hash and suffix need their share


@dataclass(frozen=True)
class Video:
    """One annotated video."""

    video_id: str
    """Unique in its file, made of `A-Z a-z 0-9 _ -`."""
    path: str
    """As annotated, relative to the root; Kinetics rows have no extension yet."""
    label: str | None
    duration_s: float | None
    """As annotated; the file may differ by a frame or so. None where the annotation does not say."""


def read_annotations(csv: Path, *, labels: Path | None = None) -> list[Video]:
    """The videos of an annotation file of either form, in its order.

    `labels` (`index label` lines) names the classes of the headerless form; without it the label is the index.
    Raises DataError naming the file, the line and what to mend.
    """
    lines = [(number, line) for number, line in enumerate(_read_lines(csv), 1) if line.strip()]
    if not lines:
        raise DataError(f"{csv}: the annotation file is empty; expected a Kinetics CSV or `path index` lines")
    if _is_header(lines[0][1]):
        rows = _official_rows(csv, lines)
    else:
        rows = _headerless_rows(csv, lines, read_labels(labels) if labels else None)
    if not rows:
        raise DataError(f"{csv}: there is a header but no row below it; is the download complete?")
    _refuse_duplicates(csv, rows)
    return _with_unique_ids([video for _, video in rows])


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file; set the path of your CSV or label file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: this is a folder; name the annotation file in it") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it; try `chmod u+r`") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _is_header(line: str) -> bool:
    """Whether the first line is a header, right or wrong, rather than a `path index` row."""
    fields = {field.strip() for field in line.split(",")}
    return bool(fields & set(_OFFICIAL)) or ("," in line and not line.split()[-1].isdigit())


def _official_rows(path: Path, lines: list[tuple[int, str]]) -> list[tuple[int, Video]]:
    header = [field.strip() for field in next(csv.reader([lines[0][1]]))]
    missing = [column for column in _REQUIRED if column not in header]
    if missing:
        raise DataError(
            f"{path}:{lines[0][0]}: the header has no column {', '.join(missing)}; expected {','.join(_OFFICIAL)}"
        )
    rows = []
    for number, line in lines[1:]:
        fields = next(csv.reader([line]))
        if len(fields) != len(header):
            raise DataError(f"{path}:{number}: {len(fields)} fields where the header has {len(header)}; mend the row")
        rows.append((number, _official_video(path, number, dict(zip(header, fields, strict=True)))))
    return rows


def _official_video(path: Path, number: int, row: Mapping[str, str]) -> Video:
    try:
        start_s, end_s = float(row["time_start"]), float(row["time_end"])
        name = f"{row['youtube_id'].strip()}_{int(start_s):06d}_{int(end_s):06d}"
    except (ValueError, OverflowError):
        raise DataError(
            f"{path}:{number}: time_start {row['time_start']!r} and time_end {row['time_end']!r} must be seconds"
        ) from None
    if not row["youtube_id"].strip() or not 0 <= start_s < end_s:
        raise DataError(f"{path}:{number}: needs a youtube_id and 0 <= time_start < time_end; mend or remove the row")
    label = row.get("label", "").strip() or None
    return Video(name, f"{label}/{name}" if label else name, label, end_s - start_s)


def _headerless_rows(
    path: Path, lines: list[tuple[int, str]], labels: Mapping[int, str] | None
) -> list[tuple[int, Video]]:
    rows = []
    for number, line in lines:
        name, index = _split_index(path, number, line)
        if labels is not None and index not in labels:
            raise DataError(f"{path}:{number}: the label file has no index {index}; mend the row or the label file")
        label = labels[index] if labels is not None else str(index)
        rows.append((number, Video(str(PurePosixPath(name).with_suffix("")), name, label, None)))
    return rows


def _split_index(path: Path, number: int, line: str) -> tuple[str, int]:
    name, _, index = line.strip().rpartition(" ")
    if not name.strip() or not index.isdigit():
        raise DataError(f"{path}:{number}: expected `path index`, got {line.strip()[:80]!r}; mend or remove the row")
    return name.strip(), int(index)


def read_labels(path: Path) -> dict[int, str]:
    """The label file's classes by index, in its order. Raises DataError naming the line."""
    labels: dict[int, str] = {}
    for number, line in enumerate(_read_lines(path), 1):
        if not line.strip():
            continue
        index, _, label = line.strip().partition(" ")
        if not index.isdigit() or not label.strip() or int(index) in labels:
            raise DataError(f"{path}:{number}: expected a new `index label`, got {line.strip()[:80]!r}")
        labels[int(index)] = label.strip()
    if not labels:
        raise DataError(f"{path}: the label file is empty; expected `index label` lines")
    return labels


def _refuse_duplicates(path: Path, rows: Iterable[tuple[int, Video]]) -> None:
    first_line: dict[str, int] = {}
    for number, video in rows:
        if video.path in first_line:
            raise DataError(
                f"{path}:{number}: {video.path} is on line {first_line[video.path]} already; remove one of them"
            )
        first_line[video.path] = number


def _with_unique_ids(videos: list[Video]) -> list[Video]:
    """The same videos with ids of safe characters; a hash of the path follows where the name alone is not enough."""
    repeats = Counter(video.video_id for video in videos)
    return [replace(video, video_id=_safe_id(video, repeats[video.video_id] > 1)) for video in videos]


def _safe_id(video: Video, repeated: bool) -> str:
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", video.video_id)
    if safe == video.video_id and not repeated and len(safe) <= _MAX_NAME:
        return safe
    return f"{safe[-_MAX_NAME:]}-{hashlib.sha256(video.path.encode()).hexdigest()[:10]}"


class VideoFolder:
    """The files below a root; every folder is listed once, when first asked about."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, annotated: str) -> Path | None:
        """The file at an annotated path, or None; the first of `EXTENSIONS` that exists where the path has none."""
        wanted = self.root / annotated
        names = self._list(wanted.parent)
        for extension in ("", *EXTENSIONS):
            if (name := names.get((wanted.name + extension).lower())) is not None:
                return wanted.parent / name
        return None

    def expected(self, annotated: str) -> Path:
        """The path to name where `find` found nothing: as annotated, `.mp4` where the extension is unknown."""
        wanted = self.root / annotated
        return wanted if wanted.suffix.lower() in EXTENSIONS else wanted.with_name(wanted.name + ".mp4")

    def _list(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            try:
                # Sorted backwards, so that of names differing only in case the first one wins.
                names = sorted(os.listdir(folder), reverse=True)  # noqa: PTH208  (names only: no Path per file)
            except (FileNotFoundError, NotADirectoryError):
                names = []
            except PermissionError:
                raise DataError(f"{folder}: no permission to list it; try `chmod u+rx`") from None
            self._names[folder] = {name.lower(): name for name in names}
        return self._names[folder]
