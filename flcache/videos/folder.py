"""Which file below a root is which annotated video."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping
from functools import cached_property
from pathlib import Path

from flcache.errors import DataError
from flcache.videos.forms.listed import EXTENSIONS
from flcache.videos.remote_path import Place, RemotePath
from flcache.videos.tar_index import read_tar_index
from flcache.videos.video_file import VideoFile

TAR = ".tar/"
"""What follows it in an annotated path is the name of a member."""


class VideoFolder:
    """The files below a root, and the members of tars there; every folder and tar is listed once, on first use.

    A file needs exactly the annotated name: YouTube ids are case-sensitive. A file whose name differs in case is taken
    only if it is the only such file and none of `annotated` names it exactly; `other_case` collects those. If
    `other_case` is given, from a folder that knew all annotations, no others are taken.
    """

    def __init__(
        self,
        root: Place,
        annotated: Iterable[str] | Container[str] = (),
        *,
        other_case: Mapping[str, VideoFile] | None = None,
    ) -> None:
        self.root = root
        self.other_case = dict(other_case or {})
        """By annotated path, the file that was taken with another case in its name."""
        self._settled = other_case is not None
        self._annotated = annotated if isinstance(annotated, Container) else frozenset(annotated)
        self._files: dict[Place, _Names] = {}
        self._tars: dict[Place, Mapping[str, VideoFile] | None] = {}

    def find(self, annotated: str) -> VideoFile | None:
        """The file at an annotated path, or None; the first of `EXTENSIONS` that exists where the path has none."""
        tar, inside, name = annotated.partition(TAR)
        if inside and (members := self._index(self.root / f"{tar}{TAR[:-1]}")) is not None:
            return members.get(name)
        wanted = self.root / annotated
        names = self._list(wanted.parent)
        found = names.called(wanted.name)
        if found is None and self._settled:
            return self.other_case.get(annotated)
        if found is None:
            alike = [name for name in names.alike(wanted.name) if not self._is_of_another(annotated, name)]
            if len(alike) != 1:
                return None
            found = alike[0]
            self.other_case[annotated] = _listed(wanted.parent / found)
        return _listed(wanted.parent / found)

    def expected(self, annotated: str) -> Place:
        """The path to report if `find` found nothing: as annotated, with `.mp4` if it has no video extension."""
        wanted = self.root / annotated
        return wanted if wanted.suffix.lower() in EXTENSIONS else wanted.with_name(wanted.name + ".mp4")

    def _is_of_another(self, annotated: str, name: str) -> bool:
        """Whether another annotation names the file `name` in this path's folder, with an extension or without."""
        folder, _, _ = annotated.rpartition("/")
        return any((f"{folder}/{spelling}" if folder else spelling) in self._annotated for spelling in _spellings(name))

    def _index(self, tar: Place) -> Mapping[str, VideoFile] | None:
        """The members of a tar by name; None where there is no such file."""
        if tar not in self._tars:
            self._tars[tar] = read_tar_index(tar) if tar.is_file() else None
        return self._tars[tar]

    def _list(self, folder: Place) -> _Names:
        if folder not in self._files and isinstance(folder, RemotePath):
            self._files[folder] = _Names(folder.names())
        elif folder not in self._files and isinstance(folder, Path):
            try:
                with os.scandir(folder) as entries:
                    self._files[folder] = _Names(entry.name for entry in entries if entry.is_file())
            except (FileNotFoundError, NotADirectoryError):
                self._files[folder] = _Names(())
            except OSError as error:
                raise DataError(f"{folder}: cannot be listed: {error.strerror}") from None
        return self._files[folder]


def _listed(file: Place) -> Place:
    return file.listed() if isinstance(file, RemotePath) else file


class _Names:
    """The regular files of one folder by name, and by name without a video extension."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._odd: dict[str, list[str]] = {}
        """By name without its extension, the files whose extension is not written in small letters."""
        for name in self._names:
            stem, extension = os.path.splitext(name)  # noqa: PTH122  (names only: no Path per file)
            if extension not in EXTENSIONS and extension.lower() in EXTENSIONS:
                self._odd.setdefault(stem, []).append(name)

    def called(self, name: str) -> str | None:
        """The file of exactly this name, or of this name and an extension."""
        if name in self._names:
            return name
        found = [name + extension for extension in EXTENSIONS if name + extension in self._names]
        return min([*found, *self._odd.get(name, [])], key=_preference, default=None)

    def alike(self, name: str) -> list[str]:
        """The files whose names, or names without an extension, differ from this one in case."""
        return self._lowered.get(name.lower(), [])

    @cached_property
    def _lowered(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(self._names, key=_preference):
            for spelling in _spellings(name):
                found.setdefault(spelling.lower(), []).append(name)
        return found


def _spellings(name: str) -> tuple[str, ...]:
    stem, extension = os.path.splitext(name)  # noqa: PTH122  (names only: no Path per file)
    return (name, stem) if extension.lower() in EXTENSIONS else (name,)


def _preference(name: str) -> tuple[int, str]:
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return EXTENSIONS.index(extension) if extension in EXTENSIONS else len(EXTENSIONS), name
