"""WebDataset tars with videos in them, as video2dataset writes: named with braces, or a folder of them.

`{00000..00123}.tar` are the shards of a list, expanded as webdataset does. Each video is a member; those of the same
key beside it may give its label: `.cls`, or the field `label` of `.json`. Captions (`.txt`) are no labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from flcache.errors import DataError
from flcache.videos.forms.labels import read_labels
from flcache.videos.forms.listed import EXTENSIONS, Row, Video
from flcache.videos.forms.source import Form, Source
from flcache.videos.forms.text import INDEX, shown
from flcache.videos.remote_path import Place, RemotePath
from flcache.videos.tar_index import read_tar_index
from flcache.videos.video_file import TarMember, at_hand, open_bytes

_LARGEST_TEXT = 2**24
"""Bytes of a `.cls` or `.json`."""


def _takes(source: Source) -> bool:
    return source.path.suffix == ".tar" or (source.path.is_dir() and any(source.path.glob("*.tar")))


def _rows(source: Source) -> list[Row]:
    classes = read_labels(source.labels) if source.labels else None
    _check_room(source.path, shards := _shards(source.path))
    rows = [(0, video) for tar in shards for video in _videos_in(source, tar, classes)]
    if not rows:
        raise DataError(f"{source.path}: no video in these tars; looked for members with {', '.join(EXTENSIONS)}")
    return rows


def _shards(path: Place) -> list[Place]:
    """The tars that a path with braces names, or that are in a folder."""
    if path.is_dir():
        beside = sorted(found.name for found in path.iterdir() if found.suffix.lower() in EXTENSIONS)
        if beside:
            raise DataError(f"{path}: tars beside videos ({beside[0]}); keep them in folders of their own")
        return sorted(path.glob("*.tar"), key=str)
    if path.is_file():
        return [path]
    from webdataset.shardlists import expand_urls

    try:
        return [path.at(name) if isinstance(path, RemotePath) else Path(name) for name in expand_urls(str(path))]
    except ValueError as error:
        raise DataError(f"{path}: cannot be expanded: {error}; write shards as {{00000..00123}}.tar") from None


def _check_room(path: Place, shards: list[Place]) -> None:
    """Clips are shuffled: where copies of tars at a URL push each other out, every clip would fetch one again."""
    far = [tar for tar in shards if isinstance(tar, RemotePath) and tar.is_file()]
    needed = sum(tar.num_bytes for tar in far)
    if far and far[0].disk is not None and needed > far[0].disk.limit_bytes:
        raise DataError(
            f"{path}: the tars have {needed} bytes, and copies of all of them are needed at once; set "
            f"cache.local_bytes to {needed} or more, or encode from files that are not in tars"
        )


def _videos_in(source: Source, tar: Place, classes: Mapping[int, str] | None) -> list[Video]:
    from webdataset.tariterators import base_plus_ext

    members, found = read_tar_index(tar), []
    for name in members:
        key, extension = base_plus_ext(name)
        if key is not None and f".{extension.rpartition('.')[2]}".lower() in EXTENSIONS:
            place = PurePosixPath(source.below_root(tar))
            found.append(Video(str(place.parent / key), f"{place}/{name}", _label(members, key, classes), None))
    return found


def _label(members: Mapping[str, TarMember], key: str, classes: Mapping[int, str] | None) -> str | None:
    """What the members beside a video say."""
    if index := members.get(f"{key}.cls"):
        return _class(index, classes)
    if fields := members.get(f"{key}.json"):
        try:
            found = dict(json.loads(_text(fields))).get("label")
        except (ValueError, TypeError, RecursionError):
            raise DataError(f"{fields}: not the JSON of an object; mend the tar") from None
        return None if found is None else str(found)
    return None


def _class(member: TarMember, classes: Mapping[int, str] | None) -> str:
    text = _text(member).strip()
    if classes is None:
        return text
    if not INDEX.fullmatch(text) or int(text) not in classes:
        raise DataError(f"{member}: the label file has no index {shown(text)}; mend the tar or the label file")
    return classes[int(text)]


def _text(member: TarMember) -> str:
    if member.num_bytes > _LARGEST_TEXT:
        raise DataError(f"{member}: {member.num_bytes} bytes are too many for a label; mend the tar")
    with at_hand(member) as here, open_bytes(here) as stream:
        content = stream.read()
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise DataError(f"{member}: not UTF-8 text; mend the tar") from None


def _digest(source: Source) -> str:
    """Of names and sizes of the tars: their members are not looked at again."""
    try:
        sizes = [f"{source.below_root(tar)} {_num_bytes(tar)}" for tar in _shards(source.path)]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}; mend dataset.train") from None
    return hashlib.sha256("\0".join(["tars", *sizes]).encode()).hexdigest()


def _num_bytes(tar: Place) -> int:
    return tar.num_bytes if isinstance(tar, RemotePath) else tar.stat().st_size


TARS = Form(_takes, _rows, _digest)
