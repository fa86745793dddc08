"""flcache bench loader [DIR] [--json]: how fast this machine reads a cache, beside its memory and other loaders.

Each loader is measured in a process of its own, one after the other. Rivals may be in another environment, whose
interpreter is named with `--rivals`; those that are not installed are left out.
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
from flcache.errors import CacheError, DataError

from ..setup.progress import Progress
from . import rivals as rivals_module
from .measure import LOADERS
from .rivals import RIVALS

CLIPS, SHAPE = 256, (8, 16, 16, 1024)
"""4 MiB each in float16: what V-JEPA 2 ViT-L gives for 16 frames of 256 pixels."""
MIN_BATCHES = 4

Row = dict[str, Any]
Interpreters = dict[str, str]
"""The interpreter of each rival that is installed somewhere."""


def run(
    directory: Path | None = None, as_json: bool = False, *, thorough: bool = False, rivals: str | None = None
) -> list[Row]:
    """Measure on the training split of the cache at `directory`, or on one made for it.

    With 2 threads or workers and warm; `thorough` adds 1 thread, no worker, and cold. Rivals that are not installed
    here are looked for with the interpreter `rivals`.
    """
    found = _interpreters(rivals)
    with tempfile.TemporaryDirectory(prefix="flcache-bench-", dir=".") as folder:
        rows = measure_all(_prepare(Path(folder).resolve(), directory, found), found, thorough=thorough)
    if as_json:
        print(json.dumps(summary(rows), indent=2))
    else:
        Console(soft_wrap=True).print(_table(rows))
    return rows


def measure_all(folder: Path, interpreters: Interpreters, *, thorough: bool) -> list[Row]:
    """One row per loader, number of workers, and warm or cold."""
    names = [*LOADERS, *interpreters]
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
            rows.append(setting | _measure(folder, interpreters, name, workers, memory))
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


def _prepare(folder: Path, directory: Path | None, interpreters: Interpreters) -> Path:
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
    for name, interpreter in interpreters.items():
        _output([interpreter, rivals_module.__file__, str(folder), name, "write"], f"writing the copy for {name}")
    return folder


def _interpreters(other: str | None) -> Interpreters:
    """This interpreter for rivals that are installed here, else `other` for those that it finds. Raises DataError."""
    here = [name for name, module in RIVALS.items() if importlib.util.find_spec(module)]
    there = []
    if other is not None:
        look = f"import importlib.util as u; print(*(n for n, m in {RIVALS}.items() if u.find_spec(m)))"
        there = _output([other, "-c", look], f"--rivals {other}").split()
    return {name: sys.executable if name in here else str(other) for name in RIVALS if name in (*here, *there)}


def _measure(folder: Path, interpreters: Interpreters, name: str, workers: int, memory: str) -> dict[str, float]:
    how = [str(folder), name, str(workers), memory]
    if name in RIVALS:
        command = [interpreters[name], "-W", "ignore", rivals_module.__file__, *how]
    else:
        command = [sys.executable, "-W", "ignore", "-m", "flcache.pipelines.bench.measure", *how]
    found: dict[str, float] = json.loads(_output(command, f"measuring {name} with {workers} workers").splitlines()[-1])
    return found


def _output(command: list[str], task: str) -> str:
    """What `command` prints. Raises DataError with its last words if it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise DataError(f"{task}: {error.strerror}; give the interpreter of an environment") from error
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"{task} failed: {reason}")
    return result.stdout


def _table(rows: Sequence[Row]) -> Table:
    table = Table("loader", "workers", "memory", "clips/s", "GB/s", "peak MB", "CPU s/GB")
    for row in rows:
        figures = (f"{row['clips_per_s']:.0f}", f"{row['gb_per_s']:.2f}", f"{row['peak_mb']:.0f}")
        table.add_row(row["loader"], str(row["workers"]), row["memory"], *figures, f"{row['cpu_s_per_gb']:.2f}")
    return table
