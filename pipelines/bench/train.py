"""flcache bench train [--config C] [KEY=VALUE ...] [--steps N] [--json]: what training costs from each source.

The same predictor learns from the same clips three times, each time by `flcache train` in a process of its own: from a
cache that is made here, from videos with a frozen encoder, and from videos with one that trains.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flcache.config import Config

from ..setup.timing import Measured, on_few_videos, sources, time_encoding, time_training
from .videos import write_videos

VIDEOS = 64
STEPS = 20


def run(config: Config, *, own_videos: bool, as_json: bool, steps: int = STEPS, videos: int = VIDEOS) -> None:
    """Train `steps` steps from each source on the first `videos` training videos, or on videos made here."""
    with tempfile.TemporaryDirectory(prefix="flcache-bench-", dir=".") as name:
        folder = Path(name).resolve()
        if own_videos:
            config = write_videos(config, folder / "videos")
        config = on_few_videos(config, folder, videos, steps)
        time_encoding(config)
        found = {name: time_training(source, folder / name) for name, source in sources(config)}
    if as_json:
        print(json.dumps({source: asdict(measured) for source, measured in found.items()}))
    else:
        Console().print(_table(found))


def _table(found: dict[str, Measured]) -> Table:
    table = Table("source", "steps/s", "clips/s", "waits for data", "peak MB")
    for source, measured in found.items():
        rates = (f"{measured.steps_per_s:.3g}", f"{measured.clips_per_s:.3g}", f"{measured.data_wait_fraction:.1%}")
        table.add_row(source, *rates, f"{measured.peak_mb:.0f}")
    return table
