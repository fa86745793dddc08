"""A list of videos as a form finds it, and what a form is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flcache.errors import DataError
from flcache.videos.forms.listed import Row
from flcache.videos.forms.text import file_digest, lines, read_text


@dataclass(frozen=True)
class Source:
    """Where a list is, and what it is read with."""

    path: Path
    labels: Path | None = None
    """`index label` lines."""

    @cached_property
    def text(self) -> str:
        return read_text(self.path)

    @cached_property
    def first_line(self) -> str:
        """The first line that is not blank. Raises DataError where there is none."""
        found = next((line for line in lines(self.text) if line.strip()), None)
        if found is None:
            raise DataError(f"{self.path}: the annotation file is empty; expected a Kinetics CSV or `path index` lines")
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
