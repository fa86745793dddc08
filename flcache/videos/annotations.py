"""Annotation files: which videos a split holds, how long each is meant to be, and where each lies below the root.

Two forms are read. The official Kinetics CSV (`label,youtube_id,time_start,time_end,split[,is_cc]`) names files
`<label>/<youtube_id>_<start:06d>_<end:06d>` without an extension; its test split has no label column and no label
folder. The headerless form has one `path index` a line, where the path may hold spaces and `index` is the last field.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from flcache.errors import DataError

EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".flv", ".wmv", ".ts")
"""Tried in this order where an annotation names no extension."""

_REQUIRED = ("youtube_id", "time_start", "time_end")
_OFFICIAL = ("label", *_REQUIRED, "split")
_OTHER_DELIMITERS = {";": "semicolon", "\t": "tab", "|": "vertical bar"}
_INDEX = re.compile(r"[0-9]{1,9}")
_SHOWN_CHARACTERS = 80
_MAX_PATH, _MAX_PART = 4000, 255
"""Most bytes of a path and of each name in it that file systems take, less room for the root."""
_MAX_NAME = 64  # the name of a tar member has 100 bytes: clip number, hash and suffix need the rest


@dataclass(frozen=True)
class Video:
    """One annotated video."""

    video_id: str
    """Unique in its file, made of `A-Z a-z 0-9 _ -`."""
    path: str
    """As annotated, relative to the root; Kinetics rows have no extension yet."""
    label: str | None
    duration_s: float | None
    """As annotated: the file may differ by a frame or so. None without an annotated duration."""


def read_annotations(
    csv: Path, *, labels: Path | None = None, root: Path | None = None, allow_outside: bool = False
) -> list[Video]:
    """The videos of an annotation file of either form, in its order.

    `labels` (`index label` lines) names the classes of the headerless form; without it the label is the index. Raises
    DataError naming the file, the line and what to mend; also for a path that leads out of `root` (absolute, or with
    `..`), unless `allow_outside`.
    """
    text = _read_text(csv)
    first = next((line for line in _lines(text) if line.strip()), None)
    if first is None:
        raise DataError(f"{csv}: the annotation file is empty; expected a Kinetics CSV or `path index` lines")
    if _is_header(csv, first):
        rows = _official_rows(csv, text)
    else:
        rows = _headerless_rows(csv, text, read_labels(labels) if labels else None)
    if not rows:
        raise DataError(f"{csv}: there is a header but no row below it; is the download complete?")
    _check_paths(csv, rows, root, allow_outside)
    return _with_unique_ids([video for _, video in rows])


def _read_text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_file(path: Path) -> bytes:
    """The bytes of an annotation or label file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file; set the path of your CSV or label file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: this is a folder; name the annotation file in it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _lines(text: str) -> list[str]:
    """Lines end at newlines alone: `str.splitlines` would also cut a label at U+2028 or a vertical tab."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _is_header(path: Path, line: str) -> bool:
    """Whether the first line is a header, right or wrong, rather than a `path index` row."""
    for delimiter, name in _OTHER_DELIMITERS.items():
        if {field.strip() for field in line.split(delimiter)} & set(_OFFICIAL) and "," not in line:
            raise DataError(f"{path}:1: the columns are separated by a {name}; separate them by commas")
    fields = {field.strip() for field in line.split(",")}
    return bool(fields & set(_OFFICIAL)) or ("," in line and not _INDEX.fullmatch(line.split()[-1]))


def _official_rows(path: Path, text: str) -> list[tuple[int, Video]]:
    rows = _csv_rows(path, text)
    number, fields = next(rows)
    header = [field.strip() for field in fields]
    missing = [column for column in _REQUIRED if column not in header]
    if missing:
        raise DataError(
            f"{path}:{number}: the header has no column {', '.join(missing)}; expected {','.join(_OFFICIAL)}"
        )
    videos = []
    for number, fields in rows:
        if len(fields) != len(header):
            raise DataError(f"{path}:{number}: {len(fields)} fields where the header has {len(header)}; mend the row")
        videos.append((number, _official_video(path, number, dict(zip(header, fields, strict=True)))))
    return videos


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its first line; a quoted field may hold newlines."""
    reader, number = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{number}: not a row of a CSV: {error}; mend or remove the row") from None


def _official_video(path: Path, number: int, row: Mapping[str, str]) -> Video:
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


def _headerless_rows(path: Path, text: str, labels: Mapping[int, str] | None) -> list[tuple[int, Video]]:
    rows = []
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        name, index = _split_index(path, number, line.strip())
        if labels is not None and index not in labels:
            raise DataError(f"{path}:{number}: the label file has no index {index}; mend the row or the label file")
        label = labels[index] if labels is not None else str(index)
        rows.append((number, Video(str(PurePosixPath(name).with_suffix("")), name, label, None)))
    return rows


def _split_index(path: Path, number: int, line: str) -> tuple[str, int]:
    name, _, index = (part.strip() for part in line.rpartition(" "))
    if _INDEX.fullmatch(index) and PurePosixPath(name).name not in ("", ".."):
        return name, int(index)
    found = next((name for mark, name in {",": "comma", **_OTHER_DELIMITERS}.items() if mark in line), None)
    hint = f" separated by a space, not by a {found}" if found else ""
    raise DataError(f"{path}:{number}: expected `path index`{hint}, got {shown(line)}; mend or remove the row")


def read_labels(path: Path) -> dict[int, str]:
    """The label file's classes by index, in its order. Raises DataError naming the line."""
    labels: dict[int, str] = {}
    for number, line in enumerate(_lines(_read_text(path)), 1):
        if not line.strip():
            continue
        index, _, label = line.strip().partition(" ")
        if not _INDEX.fullmatch(index) or not label.strip() or int(index) in labels:
            raise DataError(f"{path}:{number}: expected a new `index label`, got {shown(line.strip())}")
        labels[int(index)] = label.strip()
    if not labels:
        raise DataError(f"{path}: the label file is empty; expected `index label` lines")
    return labels


def shown(text: str) -> str:
    """`text` of a file for a message: on one line, shortened, without control characters."""
    return repr(text[:_SHOWN_CHARACTERS])


def _check_paths(path: Path, rows: Iterable[tuple[int, Video]], root: Path | None, allow_outside: bool) -> None:
    """Refuse paths that no file can have, that lead out of `root`, or that are there twice; files are not opened."""
    first_line: dict[str, int] = {}
    for number, video in rows:
        place = posixpath.normpath(video.path)
        if (
            "\0" in place
            or len(os.fsencode(place)) > _MAX_PATH
            or any(len(os.fsencode(part)) > _MAX_PART for part in place.split("/"))
        ):
            raise DataError(
                f"{path}:{number}: {shown(video.path)} cannot be the path of a file; mend or remove the row"
            )
        if not allow_outside and leads_out(video.path, root):
            raise DataError(
                f"{path}:{number}: {shown(video.path)} leads out of dataset.root; mend the row, or give "
                "dataset.allow_outside=true if you trust this list"
            )
        if place in first_line:
            raise DataError(
                f"{path}:{number}: {shown(video.path)} is on line {first_line[place]} already; remove one of them"
            )
        first_line[place] = number


def leads_out(path: str, root: Path | None) -> bool:
    """Whether an annotated path leads out of `root`: absolute and elsewhere, or by `..`."""
    place = posixpath.normpath(path)
    if not posixpath.isabs(place):
        return place.split("/", 1)[0] == ".."
    top = os.path.abspath(root) if root is not None else None  # noqa: PTH100  (symlinks are not resolved)
    return top is None or posixpath.commonpath([place, top]) != top


def _with_unique_ids(videos: list[Video]) -> list[Video]:
    """The same videos with unique ids of safe characters: a hash of the path is appended where the name is not one."""
    repeats, found = Counter(video.video_id for video in videos), []
    for video in videos:
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", video.video_id)
        if safe != video.video_id or repeats[video.video_id] > 1 or len(safe) > _MAX_NAME:
            safe = f"{safe[-_MAX_NAME:]}-{hashlib.sha256(video.path.encode()).hexdigest()[:10]}"
        found.append(replace(video, video_id=safe))
    return found
