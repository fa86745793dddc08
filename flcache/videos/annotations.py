"""Lists of videos of every form: which videos a split holds, how long each is meant to be, where it is below the root.

The form follows from the path and from what is there; `forms` has one file for each.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import partial

from flcache.errors import DataError
from flcache.remote import DiskCache
from flcache.videos.forms.folder_tree import FOLDER_TREE
from flcache.videos.forms.header_csv import HEADER_CSV, splits_in
from flcache.videos.forms.kinetics_csv import KINETICS_CSV
from flcache.videos.forms.labels import read_labels
from flcache.videos.forms.listed import EXTENSIONS, Video, check_paths, leads_out, with_unique_ids
from flcache.videos.forms.path_index import PATH_INDEX
from flcache.videos.forms.something_something import SOMETHING_SOMETHING
from flcache.videos.forms.source import Form, Source
from flcache.videos.forms.tars import TARS
from flcache.videos.options import DatasetOptions
from flcache.videos.remote_path import Place, place

__all__ = [
    "EXTENSIONS",
    "FORMS",
    "SPLITS",
    "Video",
    "is_held_out",
    "leads_out",
    "list_digest",
    "list_videos",
    "read_annotations",
    "read_labels",
    "root_of",
    "split_lists",
]

FORMS = (TARS, FOLDER_TREE, SOMETHING_SOMETHING, HEADER_CSV, KINETICS_CSV, PATH_INDEX)
"""The first that takes a list reads it."""
SPLITS = ("train", "val")


def read_annotations(
    path: Place,
    *,
    labels: Place | None = None,
    root: Place | None = None,
    allow_outside: bool = False,
    split: str | None = None,
) -> list[Video]:
    """The videos of a list of any form, in its order; of one `split`, where the list says which.

    `labels` names the classes of a list that has their indices. Raises DataError naming the file, the line and what to
    mend; also for a path that leads out of `root` (absolute, or with `..`), unless `allow_outside`.
    """
    source = Source(path, labels, root, split)
    rows = _form(source).rows(source)
    check_paths(path, rows, root, allow_outside)
    return with_unique_ids([video for _, video in rows])


def split_lists(dataset: DatasetOptions, disk: DiskCache | None = None) -> dict[str, Place]:
    """The list of every split that there is.

    Those that the options name. One CSV with a column `split` serves the others too; without any, the root is the list,
    or its folders `train` and `val` are if it has both. With `val_fraction` the list of `train`, alone, serves both.
    """
    lists = _separate_lists(dataset, disk)
    return {**lists, "val": lists["train"]} if _is_shared(dataset, lists) else lists


def is_held_out(dataset: DatasetOptions, disk: DiskCache | None = None) -> bool:
    """Whether the validation videos are a part of the training videos' list, chosen by `val_fraction`."""
    return _is_shared(dataset, _separate_lists(dataset, disk))


def root_of(dataset: DatasetOptions, disk: DiskCache | None = None) -> Place | None:
    """The folder of the videos, which may be at a URL."""
    return place(dataset.root, disk) if dataset.root else None


def _is_shared(dataset: DatasetOptions, lists: dict[str, Place]) -> bool:
    return dataset.val_fraction > 0 and set(lists) == {"train"}


def _separate_lists(dataset: DatasetOptions, disk: DiskCache | None) -> dict[str, Place]:
    root = root_of(dataset, disk)
    named = {split: place(path, disk, root) for split in SPLITS if (path := getattr(dataset, split))}
    if not named and root:
        below = {split: root / split for split in SPLITS}
        return below if all(folder.is_dir() for folder in below.values()) else {"train": root}
    if set(named) == {"train"}:
        named |= dict.fromkeys(_splits_of_one(Source(named["train"])), named["train"])
    return named


def _splits_of_one(source: Source) -> set[str]:
    """The splits that a list of several says it has. What is wrong with it, reading it will tell."""
    with suppress(DataError):
        return splits_in(source) & set(SPLITS) if _form(source) is HEADER_CSV else set()
    return set()


def list_videos(path: Place, dataset: DatasetOptions, split: str, disk: DiskCache | None = None) -> list[Video]:
    """`read_annotations` of the list of a split of the configured dataset."""
    root = root_of(dataset, disk)
    labels = place(dataset.labels, disk, root) if dataset.labels else None
    read = partial(read_annotations, path, labels=labels, root=root, allow_outside=dataset.allow_outside)
    if not is_held_out(dataset, disk):
        return read(split=split)
    videos = read(split="train")
    held_out = _held_out({video.path for video in videos}, dataset.val_fraction)
    return [video for video in videos if (video.path in held_out) == (split == "val")]


def _held_out(files: set[str], fraction: float) -> set[str]:
    """A part of the files, at least one and not all, that depends on their names alone."""
    by_digest = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file)).digest())
    return set(by_digest[: min(max(1, round(fraction * len(files))), len(files) - 1)])


def list_digest(path: Place, dataset: DatasetOptions, disk: DiskCache | None = None) -> str:
    """Changes whenever the list may have other videos; no video is opened for it."""
    source = Source(path, root=root_of(dataset, disk))
    return _form(source).digest(source)


def _form(source: Source) -> Form:
    return next(form for form in FORMS if form.takes(source))
