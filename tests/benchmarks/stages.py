"""python tests/benchmarks/stages.py [--old PYTHON] [--clips 160] [--rounds 3] [--scale 1]: how far the stages overlap.

The encoder only waits, as a CPU does for a GPU, for 20, 40 and 200 clips/s or for nothing, and gives 4 MiB latents.
The clips are of videos of 340 x 256, made here; two processes decode. Every round measures both interpreters in turn,
each in a process of its own; the table has medians. PYTHON is the interpreter of a checkout of older code. With
`--scale 10` also ten times the clips in one run between two halves of ten runs, which together encode as many.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

OFFERED = (20.0, 40.0, 200.0, 0.0)
"""Clips per second; 0 is as many as come."""
SHAPE = (8, 16, 16, 1024)
BATCH = 8


def measure(root: Path, clips: int, offered: float) -> dict[str, float]:
    """Clips per second, share of the time in which the encoder was busy, seconds and peak memory, in this process."""
    import numpy as np
    import torch

    from flcache.cache import make_spec
    from flcache.encoder import ContextRule, EncoderSource
    from flcache.engines import ClipDone, EncodeJob, ShardTask, local
    from flcache.videos import ClipRequest, PlannedClip

    class StandIn:
        device = torch.device("cpu")
        latents = torch.from_numpy(np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32))

        def __init__(self) -> None:
            self.spans: list[tuple[float, float]] = []

        def __call__(self, clips: list[torch.Tensor]) -> torch.Tensor:
            began_s = time.perf_counter()
            time.sleep(len(clips) / offered if offered else 0)
            self.spans.append((began_s, time.perf_counter()))
            return self.latents.expand(len(clips), *SHAPE)

    layout, context = {"shape": list(SHAPE)}, {"mode": "step", "seen_until": list(range(SHAPE[0]))}
    spec = make_spec({"encoder": "stand-in", "layout": layout, "context": context, "codec": "float16"})
    request = ClipRequest(16, 2.0, tuple(2 + number / 4 for number in range(16)), None, "pad")
    videos = sorted(path.name for path in root.glob("*.mp4"))
    planned = [
        PlannedClip(f"v{number}-0", f"v{number}", videos[number % len(videos)], None, number % 64, request)
        for number in range(clips)
    ]
    tasks = [
        ShardTask("train", shard, tuple(planned[shard * 64 : shard * 64 + 64])) for shard in range(-(-clips // 64))
    ]
    stored_at: list[float] = []
    with tempfile.TemporaryDirectory(dir=root) as folder:
        job = EncodeJob(
            cache=Path(folder) / "cache",
            video_root=root,
            other_case={},
            spec=spec,
            encoder=EncoderSource(),
            context=ContextRule(),
            device="cpu",
            decode_workers=2,
            decode_timeout_s=60.0,
            batch_size=BATCH,
        )
        encoder: Any = StandIn()
        note = lambda event: stored_at.append(time.perf_counter()) if isinstance(event, ClipDone) else None  # noqa: E731
        run_with(local.run, encoder)(job, tasks, note)
    span_s = encoder.spans[-1][1] - encoder.spans[0][0]
    status = Path("/proc/self/status").read_text()
    return {
        "clips_per_s": (len(stored_at) - BATCH) / (stored_at[-1] - stored_at[BATCH - 1]),
        "busy": sum(ended - began for began, ended in encoder.spans) / span_s,
        "seconds": stored_at[-1] - stored_at[0],
        "peak_mb": int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024,
    }


def run_with(run: Any, encoder: Any) -> Any:
    """`run` with its encoder, which older code takes as it is."""
    lazy = "load_model" in inspect.signature(run).parameters
    return partial(run, load_model=lambda: encoder) if lazy else partial(run, model=encoder)


def in_a_process(python: str, root: Path, clips: int, offered: float) -> dict[str, float]:
    command = [python, __file__, "--measure", str(root), "--clips", str(clips), "--offered", str(offered)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def make_videos(root: Path) -> None:
    from flcache.config import Config
    from flcache.pipelines.bench.videos import write_videos

    write_videos(Config(), root)


def compare_sizes(root: Path, clips: int, scale: int) -> None:
    """One run of `scale` times `clips` between two halves of `scale` runs: a machine that slows down slows both."""

    def runs(number: int, clips: int) -> list[dict[str, float]]:
        found = [in_a_process(sys.executable, root, clips, 0.0) for _ in range(number)]
        print(f"{clips} clips:", *(f"{clips / run['clips_per_s']:.1f}" for run in found), "s", flush=True)
        return found

    before, [large], after = runs(scale // 2, clips), runs(1, clips * scale), runs(scale - scale // 2, clips)
    small_s = sum(clips / run["clips_per_s"] for run in before + after)
    small_mb, large_s = max(run["peak_mb"] for run in before + after), clips * scale / large["clips_per_s"]
    print(f"{scale} runs of {clips} clips: {small_s:.1f} s, peak {small_mb:.0f} MB")
    ratio = large_s / small_s
    print(f"one of {clips * scale}: {large_s:.1f} s, {ratio:.3f} times that, peak {large['peak_mb']:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", metavar="PYTHON")
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--only", type=float, help="one rate that the encoder offers, instead of all")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--offered", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.clips, options.offered)))
        return
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = (Path(folder) / "videos").resolve()
        make_videos(root)
        pythons = {**({"old": options.old} if options.old else {}), "new": sys.executable}
        print("code  offered clips/s   busy")
        for offered in OFFERED if options.only is None else [options.only]:
            rows: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
            for _ in range(options.rounds):
                for name, python in pythons.items():
                    rows[name].append(in_a_process(python, root, options.clips, offered))
            for name, found in rows.items():
                middle = {key: statistics.median(row[key] for row in found) for key in found[0]}
                shown = f"{offered:g}" if offered else "all"
                print(f"{name:5} {shown:>7} {middle['clips_per_s']:7.1f} {middle['busy']:6.2f}", flush=True)
        if options.scale > 1:
            compare_sizes(root, options.clips, options.scale)


if __name__ == "__main__":
    main()
