"""flcache demo [--out DIR]: synthetic videos -> encode -> train -> evaluate -> report, with nothing to download.

The demo is the commands: it prints every line it runs, and each works when pasted.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flcache.videos import write_dataset

TRAIN_VIDEOS, VAL_VIDEOS = 448, 128
DEFAULT_FOLDER = Path("flcache-demo")


def run(out: Path, flcache: Callable[[Sequence[str]], None]) -> None:
    """Do all of it below `out`; `flcache` runs a command line. A second run keeps what the first has done."""
    started = time.monotonic()
    videos = out / "videos"
    print(f"Writing {TRAIN_VIDEOS + VAL_VIDEOS} synthetic videos of bouncing shapes to {videos}", flush=True)
    write_dataset(videos, train_videos=TRAIN_VIDEOS, val_videos=VAL_VIDEOS)
    configured = ["--config", "demo", *_folder_overrides(out)]
    for command in (["encode"], ["train", "--resume"], ["evaluate"]):
        _run(flcache, [*command, *configured])
    _run(flcache, ["report", str(out)])
    print(f"Done in {time.monotonic() - started:.0f} s. Look at:")
    training = out / "training"
    results = {
        out / "report.html": "all of it on one page, with a player; open it in a browser",
        training / "skill.png": "skill over horizon",
        training / "evaluation.json": "the table above, for programs",
        training / "metrics.jsonl": f"losses with the copy-last line; or: tensorboard --logdir {training}",
        out / "cache": "the latents: WebDataset tars; try flcache inspect-cache",
    }
    for path, what in results.items():
        print(f"  {path}  {what}")


def _folder_overrides(out: Path) -> list[str]:
    """What differs from `configs/demo.yaml` when the demo lives in `out`."""
    if out == DEFAULT_FOLDER:
        return []
    paths = {
        "dataset.root": "videos",
        "dataset.train": "videos/train.csv",
        "dataset.val": "videos/val.csv",
        "cache.dir": "cache",
        "training.dir": "training",
    }
    return [f"{key}={out / path}" for key, path in paths.items()]


def _run(flcache: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> None:
    print(f"\n$ flcache {shlex.join(arguments)}", flush=True)
    flcache(arguments)
