"""flcache import MANIFEST --root DIR --out CACHE: latents in files become a cache."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flcache.cache import (
    TRAINING_SPLIT,
    CacheOptions,
    CacheWriter,
    LatentCache,
    LatentFiles,
    ManifestRow,
    read_latents,
    read_manifest,
)
from flcache.errors import DataError

from .setup.progress import Progress


@dataclass(frozen=True)
class ImportOptions:
    """What the files do not say of their latents."""

    codec: str = CacheOptions.codec
    shape: Sequence[int] | None = None
    """(T, H, W, D) that every file is reshaped to; by default the first file's."""
    context: str = "full"
    """`step` where every step was encoded alone."""
    step_s: float = 1.0
    """Seconds from one step to the next."""
    key: str | None = None
    """Name of the tensor in files that hold several."""
    spec: Path | None = None
    """A JSON file that says what the latents are."""


def run(manifest: Path, root: Path, out: Path, options: ImportOptions) -> None:
    """Write the shards that the cache at `out` lacks. Raises DataError if a file could not be imported."""
    rows = read_manifest(manifest, root)
    shape = options.shape or _shape(rows[0].path, options.key)
    writer = CacheWriter(
        out,
        shape,
        codec=options.codec,
        spec=_spec(options.spec),
        context=options.context,
        seed=CacheOptions.seed,
    )
    for split in sorted({row.split for row in rows}, key=lambda name: (name != TRAINING_SPLIT, name)):
        _write(writer, split, [row for row in rows if row.split == split], shape, options)
    _report(out)


def _write(
    writer: CacheWriter, split: str, rows: Sequence[ManifestRow], shape: Sequence[int], options: ImportOptions
) -> None:
    times = [options.step_s * step for step in range(shape[0])]
    infos = [replace(row.info, times=times) for row in rows]
    latents = LatentFiles([row.path for row in rows], shape=shape, key=options.key)
    with Progress(f"Importing {split}", len(rows), "clips") as progress:
        writer.write(split, infos, latents, lambda failure: progress.advance(failed=failure is not None))


def _shape(path: Path, key: str | None) -> tuple[int, ...]:
    shape = tuple(read_latents(path, key).shape)
    if len(shape) != 4:
        raise DataError(f"{path}: {shape} is not (T, H, W, D); say what it is with --shape T,H,W,D")
    return shape


def _spec(path: Path | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object")
    return content


def _report(out: Path) -> None:
    cache = LatentCache(out)
    failures = cache.failures()
    for split, progress in cache.progress().items():
        print(f"{out}: {split}: {progress.clips} clips of {progress.planned_clips}, {progress.failed} failed")
    for failure in failures[:5]:
        print(f"  {failure.clip_id}: {failure.message}", file=sys.stderr)
    if failures:
        raise DataError(
            f"{out}: {len(failures)} clips could not be imported and are left out; "
            f'"flcache inspect-cache --json {out}" lists them; to take them in, mend them and import into a new folder'
        )
