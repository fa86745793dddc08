"""Files of latents, listed in a CSV manifest, for a `CacheWriter`. Nothing is ever unpickled.

The manifest has a column `path`, relative to a folder, and optionally `id`, `label`, `split` and `video`; other columns
become metadata of the clip. A file holds one clip: `.npy`, `.pt` or `.safetensors`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from flcache.cache.format.statistics import TRAINING_SPLIT
from flcache.cache.storage.local import storage_errors
from flcache.cache.write.writer import ClipInfo
from flcache.errors import DataError

COLUMNS = ("path", "id", "label", "split", "video")


@dataclass(frozen=True)
class ManifestRow:
    split: str
    path: Path
    info: ClipInfo


def read_manifest(manifest: Path, root: Path) -> list[ManifestRow]:
    """The rows of a CSV manifest, whose files lie below `root`.

    Raises DataError for a manifest without `path`, and for a path that leads out of `root`.
    """
    try:
        with storage_errors(manifest), manifest.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restkey="", restval="")
            if "path" not in (reader.fieldnames or ()):
                raise DataError(f"{manifest}: no column named path; its first line must name the columns")
            rows = [_row(row, root, f"{manifest}:{reader.line_num}") for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{manifest}: not a CSV file in UTF-8: {error}") from error
    if not rows:
        raise DataError(f"{manifest}: lists no file")
    return rows


class LatentFiles(Sequence[Any]):
    """The latents in `paths`, each read when it is indexed; reshaped to `shape` where that is given.

    `key` names the tensor of a file that holds several. Raises DataError, naming the file, for one that is missing, is
    no array, or is of another shape.
    """

    def __init__(self, paths: Sequence[Path], *, shape: Sequence[int] | None = None, key: str | None = None) -> None:
        self._paths, self._shape, self._key = paths, tuple(shape) if shape else None, key

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: Any) -> Any:
        path = self._paths[number]
        array = read_latents(path, self._key)
        if self._shape is None:
            return array
        found = tuple(array.shape)
        if prod(found) != prod(self._shape) or not found or found[-1] != self._shape[-1]:
            raise DataError(
                f"{path}: {found}, which is not {self._shape} with time first and channels last", reason="not readable"
            )
        return array.reshape(self._shape)


def read_latents(path: Path, key: str | None = None) -> Any:
    """The array or tensor in a `.npy`, `.pt` or `.safetensors` file. Raises DataError."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: not one of {', '.join(_READERS)}", reason="not readable")
    if not path.is_file():
        raise DataError(f"{path}: no such file", reason="no file")
    try:
        return reader(path, key)
    except DataError:
        raise
    except Exception as error:  # each format has errors of its own
        raise DataError(
            f"{path}: cannot be read: {str(error).splitlines()[0] if str(error) else type(error)}",
            reason="not readable",
        ) from error


def _read_npy(path: Path, key: str | None) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read_pt(path: Path, key: str | None) -> Any:
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    tensor = content[_name(path, list(content), key)] if isinstance(content, Mapping) else content
    if not isinstance(tensor, torch.Tensor):
        raise DataError(f"{path}: holds a {type(tensor).__name__}, not a tensor", reason="not readable")
    return tensor


def _read_safetensors(path: Path, key: str | None) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        name = _name(path, list(tensors.keys()), key)
        return tensors.get_tensor(name)


def _name(path: Path, names: list[Any], key: str | None) -> Any:
    """The name of the tensor to read: `key`, or the only one."""
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        raise DataError(
            f"{path}: holds {', '.join(map(str, sorted(names)))}; say which with --key", reason="not readable"
        )
    return key


_READERS: dict[str, Callable[[Path, str | None], Any]] = {
    ".npy": _read_npy,
    ".pt": _read_pt,
    ".safetensors": _read_safetensors,
}


def _row(row: Mapping[str, Any], root: Path, where: str) -> ManifestRow:
    path = root / row["path"]
    if not row["path"] or not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{where}: path {row['path']!r} leads out of {root}")
    info = ClipInfo(
        clip_id=row.get("id") or path.stem.replace(".", "_").replace(" ", "_"),
        label=row.get("label") or None,
        video=row.get("video") or row["path"],
        metadata={name: value for name, value in row.items() if name not in COLUMNS and name} or None,
    )
    return ManifestRow(row.get("split") or TRAINING_SPLIT, path, info)
