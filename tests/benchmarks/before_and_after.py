"""python tests/benchmarks/before_and_after.py BEFORE [--rounds 5] [--only loader]: two checkouts in one run.

BEFORE is a checkout of another commit whose `.venv` holds it (`git worktree add BEFORE REVISION`, then `python3 -m venv
.venv && .venv/bin/pip install -e .` in it). Each round measures both, the first of them in turn; the medians and their
ratio (above 1: this checkout is faster) are printed as one JSON line a benchmark.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
VIDEOS = HERE.parent / "shared" / "videos"
MAKE_CACHE = """
import sys
import numpy as np
from flcache.cache import CacheWriter
noise = np.random.default_rng(0).standard_normal((8, 16, 16, 1024), dtype=np.float32)
writer = CacheWriter(sys.argv[1], noise.shape, codec="float16", spec={"encoder": "noise"}, context="step")
names = [f"clip{number}" for number in range(int(sys.argv[2]))]
writer.write("train", names, [noise] * len(names))
"""
READ_CACHE = """
import sys, time
from flcache.cache import LatentCache, LatentLoader
loader = LatentLoader(LatentCache(sys.argv[1]), batch_size=8, context_steps=4, threads=2, verify=sys.argv[2])
rates = []
for epoch in range(8):
    clips = 0
    started = time.perf_counter()
    for batch in loader:
        clips += len(batch)
    rates.append(clips / (time.perf_counter() - started))
print("clips/s", max(rates[1:]))
"""
DECODE_CLIPS = """
import sys, time
from pathlib import Path
from flcache.errors import DecodeError
from flcache.videos import ClipRequest, decode_clip
kinds = (".mp4", ".mkv", ".avi", ".mov", ".webm")
paths = [path for path in sorted(Path(sys.argv[1]).rglob("*.*")) if path.suffix in kinds]
passes = []
for _ in range(int(sys.argv[2])):
    started = time.process_time()
    for path in paths:
        for start_s in (0.0, 1.0, 3.0):
            try:
                decode_clip(path, ClipRequest(16, start_s, tuple(start_s + i / 8 for i in range(16)), None, "pad"))
            except DecodeError:
                pass
    passes.append(time.process_time() - started)
print("CPU s", min(passes))
"""


@dataclass(frozen=True)
class Benchmark:
    """A command of a checkout's Python, and the figure in what it prints."""

    arguments: tuple[str, ...]
    figure: str
    """A regular expression whose group is the figure."""
    more_is_faster: bool


def benchmarks(cache: Path, smallest: bool) -> dict[str, Benchmark]:
    clips, preset, steps = ("1", "tiny", "1") if smallest else ("24", "small", "5")
    encode = ("tests/benchmarks/encode.py", "--clips", clips, "--rounds", "1")
    train = ("tests/benchmarks/predictor_step.py", "--preset", preset, "--steps", steps)
    decode = ("-c", DECODE_CLIPS, str(VIDEOS), "1" if smallest else "3")
    return {
        "loader, unchecked": Benchmark(("-c", READ_CACHE, str(cache), "off"), r"clips/s ([\d.]+)", True),
        "loader, checked": Benchmark(("-c", READ_CACHE, str(cache), "always"), r"clips/s ([\d.]+)", True),
        **({"decode": Benchmark(decode, r"CPU s ([\d.]+)", False)} if VIDEOS.is_dir() else {}),
        "encode": Benchmark(encode, r"flcache ([\d.]+) s", False),
        "training step": Benchmark(train, r'"flcache": ([\d.]+)', False),
    }


def figure(checkout: Path, benchmark: Benchmark) -> float:
    """What `benchmark` prints in `checkout`; its exit code is the benchmark's own verdict and not looked at."""
    own = checkout / ".venv" / "bin" / "python"
    command = [str(own) if own.exists() else sys.executable, *benchmark.arguments]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    found = re.search(benchmark.figure, result.stdout)
    if found is None:
        sys.exit(f"{checkout}: no figure in {result.stdout!r}\n{result.stderr}")
    return float(found[1])


def compare(before: Path, benchmark: Benchmark, rounds: int) -> dict[str, float]:
    checkouts = {"before": before, "after": HERE}
    figures: dict[str, list[float]] = {name: [] for name in checkouts}
    for turn in range(rounds):
        for name in sorted(checkouts, reverse=turn % 2 == 0):
            figures[name].append(figure(checkouts[name], benchmark))
    old, new = (statistics.median(figures[name]) for name in checkouts)
    return {"before": old, "after": new, "ratio": round(new / old if benchmark.more_is_faster else old / new, 3)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="benchmarks whose name starts so")
    parser.add_argument("--smallest", action="store_true", help="as little as shows that everything runs")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="flcache-bench-", dir=".") as folder:
        cache = Path(folder).resolve() / "cache"
        make = [sys.executable, "-c", MAKE_CACHE, str(cache), "32" if options.smallest else "256"]
        subprocess.run(make, check=True, cwd=folder)
        for name, benchmark in benchmarks(cache, options.smallest).items():
            if name.startswith(options.only):
                print(json.dumps({name: compare(options.before.resolve(), benchmark, options.rounds)}), flush=True)


if __name__ == "__main__":
    main()
