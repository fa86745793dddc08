"""A list of videos as a form finds it, and what a form is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from flcache.errors import DataError
from flcache.videos.forms.listed import Row
from flcache.videos.forms.text import file_digest, lines, read_text
from flcache.videos.remote_path import Place


@dataclass(frozen=True)
class Source:
    """Where a list is, and what it is read with."""

    path: Place
    labels: Place | None = None
    """The file that names the classes."""
    root: Place | None = None
    """The folder of the videos."""
    split: str | None = None
    """The split to read, where the list has several; None is all."""

    def below_root(self, path: Place) -> str:
        """`path`, relative to the root of the videos, which is by default the folder of the list."""
        return os.path.relpath(str(path), str(self.root or (self.path if self.path.is_dir() else self.path.parent)))

    @cached_property
    def text(self) -> str:
        return read_text(self.path)

    @cached_property
    def first_line(self) -> str:
        """The first line that is not blank. Raises DataError where there is none."""
        found = next((line for line in lines(self.text) if line.strip()), None)
        if found is None:
            raise DataError(f"{self.path}: the annotation file is empty; expected rows such as `path index`")
        return found


@dataclass(frozen=True)
class Form:
    """One form in which videos may be listed."""

    takes: Callable[[Source], bool]
    """Whether the list is of this form, right or wrong."""
    rows: Callable[[Source], list[Row]]
    """Its videos, in its order. Raises DataError naming the file, the line and what to mend."""
    digest: Callable[[Source], str] = lambda source: file_digest(source.path)
    """Changes whenever the rows may."""
