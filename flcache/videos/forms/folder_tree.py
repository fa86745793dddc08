"""A folder without a list: every video below it, by name; the label is the first folder on the way, if there is one.

Names that begin with a dot are left out. A folder that links lead to as well is looked through once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from flcache.errors import DataError
from flcache.videos.forms.listed import EXTENSIONS, Row, Video, without_extension
from flcache.videos.forms.source import Form, Source
from flcache.videos.forms.text import shown
from flcache.videos.remote_path import Place, RemotePath


def _rows(source: Source) -> list[Row]:
    names = _videos_below(source.path)
    if not names:
        raise DataError(f"{source.path}: no video in this folder or below it; looked for {', '.join(EXTENSIONS)}")
    prefix = source.below_root(source.path)
    return [(0, _video(prefix, PurePosixPath(name))) for name in names]


def _video(prefix: str, name: PurePosixPath) -> Video:
    path, label = PurePosixPath(prefix) / name, name.parts[0] if len(name.parts) > 1 else None
    return Video(without_extension(str(path)), str(path), label, None)


def _videos_below(folder: Place) -> list[str]:
    """Sorted names relative to `folder`. Raises DataError for a folder that cannot be listed."""
    if isinstance(folder, RemotePath):
        return sorted(filter(_is_shown_video, folder.names_below()))
    names = []
    for parent, files in _walk(folder):
        place = PurePosixPath(parent).relative_to(folder)
        for path in (str(place / name) for name in files):
            if not _is_text(path):
                raise DataError(f"{folder}: the name {shown(path)} is not UTF-8; rename that file")
            names.append(path)
    return sorted(names)


def _is_shown_video(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS) and not any(part.startswith(".") for part in path.split("/"))


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder from `folder` down, with the names of its videos."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}")

    seen = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        below = {os.path.realpath(f"{parent}/{name}"): name for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for place, name in below.items() if place not in seen]
        seen |= set(below)
        yield parent, [name for name in files if _is_video(parent, name)]


def _is_video(parent: str, name: str) -> bool:
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122  (names only: no Path per file)
    return extension in EXTENSIONS and not name.startswith(".") and os.path.isfile(f"{parent}/{name}")  # noqa: PTH113


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _digest(source: Source) -> str:
    """Of the names alone: as with a list, a video may be mended and its clips tried again under the same plan."""
    names = ["folder", source.below_root(source.path), *_videos_below(source.path)]
    return hashlib.sha256("\0".join(names).encode()).hexdigest()


FOLDER_TREE = Form(lambda source: source.path.is_dir(), _rows, _digest)
