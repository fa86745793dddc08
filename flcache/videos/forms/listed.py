"""One video of a list, and what holds for lists of every form: paths below the root, none twice, unique ids."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from flcache.errors import DataError
from flcache.videos.forms.text import shown
from flcache.videos.remote_path import Place

EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".flv", ".wmv", ".ts")
"""Tried in this order where an annotation names no extension."""

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
    start_s: float | None = None
    """Where in the file the video starts; None for the whole file."""
    end_s: float | None = None
    """Where it ends, if it is not with the file."""

    @property
    def segment(self) -> str:
        """`path`, with the seconds where it is a part of the file only."""
        whole = self.start_s is None and self.end_s is None
        return self.path if whole else f"{self.path}@{self.start_s or 0.0}-{self.end_s or ''}"


Row = tuple[int, Video]
"""A video, and the line of the list that names it, or the entry; 0 where there are none."""


def without_extension(path: str) -> str:
    """`path` in its shortest form, less the extension of its last name: `.mp4` of `..mp4`, and none of `a.`, as in
    Python 3.11. The pathlib of later versions sees these names otherwise, and ids must stay."""
    short = str(PurePosixPath(path))
    name = short[short.rfind("/") + 1 :]
    dot = name.rfind(".")
    return short[: dot - len(name)] if 0 < dot < len(name) - 1 else short


def check_paths(path: Place, rows: Iterable[Row], root: Place | None, allow_outside: bool) -> None:
    """Refuse paths that no file can have, that lead out of `root`, or that are there twice; files are not opened."""
    first_line: dict[tuple[str, float | None, float | None], int] = {}
    for number, video in rows:
        line = f"{path}:{number}" if number else str(path)
        place = posixpath.normpath(video.path)
        if (
            "\0" in place
            or len(os.fsencode(place)) > _MAX_PATH
            or any(len(os.fsencode(part)) > _MAX_PART for part in place.split("/"))
        ):
            raise DataError(f"{line}: {shown(video.path)} cannot be the path of a file; mend or remove the row")
        if not allow_outside and leads_out(video.path, root):
            raise DataError(
                f"{line}: {shown(video.path)} leads out of dataset.root; mend the row, or give "
                "dataset.allow_outside=true if you trust this list"
            )
        first = first_line.setdefault((place, video.start_s, video.end_s), number)
        if first != number:
            raise DataError(f"{line}: {shown(video.path)} is on line {first} already; remove one of them")


def leads_out(path: str, root: Place | None) -> bool:
    """Whether an annotated path leads out of `root`: absolute and elsewhere, or by `..`."""
    place = posixpath.normpath(path)
    if not posixpath.isabs(place):
        return place.split("/", 1)[0] == ".."
    top = os.path.abspath(str(root)) if root is not None else None  # noqa: PTH100  (symlinks are not resolved)
    return top is None or posixpath.commonpath([place, top]) != top


def with_unique_ids(videos: list[Video]) -> list[Video]:
    """The same videos with unique ids of safe characters: where the name is not one, a hash of the path is appended."""
    repeats, found = Counter(video.video_id for video in videos), []
    for video in videos:
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", video.video_id)
        if safe != video.video_id or repeats[video.video_id] > 1 or len(safe) > _MAX_NAME:
            safe = f"{safe[-_MAX_NAME:]}-{hashlib.sha256(video.segment.encode()).hexdigest()[:10]}"
        found.append(replace(video, video_id=safe))
    return found
