"""Lists of videos of every form: which videos a split holds, how long each is meant to be, where it is below the root.

The form follows from the path and from what is there; `forms` has one file for each.
"""

from __future__ import annotations

from pathlib import Path

from flcache.videos.forms.kinetics_csv import KINETICS_CSV
from flcache.videos.forms.listed import EXTENSIONS, Video, check_paths, leads_out, with_unique_ids
from flcache.videos.forms.path_index import PATH_INDEX, read_labels
from flcache.videos.forms.source import Form, Source
from flcache.videos.options import DatasetOptions

__all__ = ["EXTENSIONS", "Video", "leads_out", "list_digest", "list_videos", "read_annotations", "read_labels"]

FORMS = (KINETICS_CSV, PATH_INDEX)
"""The first that takes a list reads it."""


def read_annotations(
    csv: Path, *, labels: Path | None = None, root: Path | None = None, allow_outside: bool = False
) -> list[Video]:
    """The videos of a list of any form, in its order.

    `labels` (`index label` lines) names the classes of the headerless form; without it the label is the index. Raises
    DataError naming the file, the line and what to mend; also for a path that leads out of `root` (absolute, or with
    `..`), unless `allow_outside`.
    """
    source = Source(csv, labels)
    rows = _form(source).rows(source)
    check_paths(csv, rows, root, allow_outside)
    return with_unique_ids([video for _, video in rows])


def list_videos(path: Path, dataset: DatasetOptions) -> list[Video]:
    """`read_annotations` of a list of the configured dataset."""
    labels, root = (Path(name) if name else None for name in (dataset.labels, dataset.root))
    return read_annotations(path, labels=labels, root=root, allow_outside=dataset.allow_outside)


def list_digest(path: Path) -> str:
    """Changes whenever the list may have other videos; no video is opened for it."""
    source = Source(path)
    return _form(source).digest(source)


def _form(source: Source) -> Form:
    return next(form for form in FORMS if form.takes(source))
