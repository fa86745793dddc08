"""flcache bench loader [DIR] [--json]: how fast this machine reads a cache, beside its memory and other loaders.

Each loader is measured in a process of its own, one after the other. Rivals that are not installed (extra `bench`) are
left out.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from flcache.cache import CacheWriter, LatentCache
from flcache.errors import CacheError

from ..setup.progress import Progress
from .measure import LOADERS, RIVALS, write_rivals

CLIPS, SHAPE = 256, (8, 16, 16, 1024)
"""4 MiB each in float16: what V-JEPA 2 ViT-L gives for 16 frames of 256 pixels."""
MIN_BATCHES = 4

Row = dict[str, Any]


def run(directory: Path | None = None, as_json: bool = False, *, thorough: bool = False) -> list[Row]:
    """Measure on the training split of the cache at `directory`, or on one made for it.

    With 2 threads or workers and warm; `thorough` adds 1 thread, no worker, and cold.
    """
    with tempfile.TemporaryDirectory(prefix="flcache-bench-", dir=".") as folder:
        rows = measure_all(_prepare(Path(folder), directory), thorough=thorough)
    if as_json:
        print(json.dumps(summary(rows), indent=2))
    else:
        Console(soft_wrap=True).print(_table(rows))
    return rows


def measure_all(folder: Path, *, thorough: bool) -> list[Row]:
    """One row per loader, number of workers, and warm or cold."""
    names = [name for name in LOADERS if name in _installed() or name not in RIVALS]
    if not (folder / "int8").exists():
        names.remove("flcache standardised int8")
    settings = [
        (name, workers, memory)
        for memory in (("warm", "cold") if thorough else ("warm",))
        for name in names
        for workers in ((0, 2) if name in RIVALS else (1, 2) if thorough else (2,))
    ]
    with Progress("Measuring", len(settings), "loaders") as progress:
        rows = []
        for name, workers, memory in settings:
            setting = {"loader": name, "workers": workers, "memory": memory}
            rows.append(setting | _measure(folder, name, workers, memory))
            progress.advance(note=name)
    return rows


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The best figure of each loader, warm, as `flcache bench loader --json` prints it."""
    best: dict[str, float] = {}
    for row in rows:
        if row["memory"] == "warm":
            best[row["loader"]] = max(best.get(row["loader"], 0.0), row["clips_per_s"])
    return {
        "clips_per_s": best["flcache"],
        "clips_per_s_verified": best["flcache verified"],
        "clips_per_s_2_steps": best["flcache 2 steps"],
        "clips_per_s_standardised": best["flcache standardised"],
        "clips_per_s_standardised_int8": best.get("flcache standardised int8"),
        "ring_clips_per_s": best["ring"],
        "rivals": {name: best[name] for name in RIVALS if name in best},
    }


def _write_noise(path: Path, *, codec: str) -> None:
    """A cache of `CLIPS` clips of the same noise."""
    noise = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    writer = CacheWriter(path, SHAPE, codec=codec, spec={"encoder": "noise"}, context="step")
    writer.write("train", [f"clip-{number:06d}" for number in range(CLIPS)], [noise] * CLIPS)


def _prepare(folder: Path, directory: Path | None) -> Path:
    """Put the cache and the rivals' copies of it into `folder`, which is returned."""
    if directory is None:
        _write_noise(folder / "cache", codec="float16")
        _write_noise(folder / "int8", codec="int8")
    else:
        cache = LatentCache(directory, "train")
        if len(cache) < MIN_BATCHES * 8 or not cache.spec.codec.stores_latents:
            raise CacheError(
                f"{directory}: {len(cache)} training clips in {cache.spec.codec.name}; a measurement wants at least "
                f"{MIN_BATCHES * 8} in float16 or float32; leave out DIR to measure on noise"
            )
        (folder / "cache").symlink_to(directory.resolve())
    write_rivals(folder, _installed())
    return folder


def _installed() -> list[str]:
    return [name for name, module in RIVALS.items() if importlib.util.find_spec(module)]


def _measure(folder: Path, name: str, workers: int, memory: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "flcache.pipelines.bench.measure", str(folder), name, str(workers)]
    result = subprocess.run([*command, memory], capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise CacheError(f"measuring {name} with {workers} workers failed: {reason}")
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def _table(rows: Sequence[Row]) -> Table:
    table = Table("loader", "workers", "memory", "clips/s", "GB/s", "peak MB", "CPU s/GB")
    for row in rows:
        figures = (f"{row['clips_per_s']:.0f}", f"{row['gb_per_s']:.2f}", f"{row['peak_mb']:.0f}")
        table.add_row(row["loader"], str(row["workers"]), row["memory"], *figures, f"{row['cpu_s_per_gb']:.2f}")
    return table
