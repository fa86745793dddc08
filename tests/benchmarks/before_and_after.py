"""python tests/benchmarks/before_and_after.py BEFORE [--rounds 15] [--only loader]: two checkouts in one run.

BEFORE is a checkout of another commit whose `.venv` holds it (`git worktree add BEFORE REVISION`, then `python3 -m venv
.venv && .venv/bin/pip install -e .` in it). A process of each checkout stays alive and measures for a few seconds when
it is told to, in turns: what else the machine does slows both. Prints one JSON line per benchmark, for wall and CPU
time: the medians in ms, and the median over rounds of before / after (above 1: this checkout is faster).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
VIDEOS = HERE.parent / "shared" / "videos"
KINDS = (".mp4", ".mkv", ".avi", ".mov", ".webm")
SERVE = """
once()
print("ready", flush=True)
for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    count = once()
    print((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count, flush=True)
"""
PREAMBLE = """
import importlib.util, itertools, sys, tempfile, time
from pathlib import Path

def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, f"tests/benchmarks/{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""
LOADER = """
from flcache.cache import LatentCache, LatentLoader
loader = LatentLoader(LatentCache(sys.argv[1]), batch_size=8, context_steps=4, threads=2, verify=sys.argv[2])
once = lambda: sum(map(len, loader))
"""
DECODE = """
from flcache.errors import DecodeError
from flcache.videos import ClipRequest, decode_clip
paths = itertools.cycle(sys.argv[1:])
def once():
    path = Path(next(paths))
    for start_s in (0.0, 1.0, 3.0):
        try:
            decode_clip(path, ClipRequest(16, start_s, tuple(start_s + i / 8 for i in range(16)), None, "pad"))
        except DecodeError:
            pass
    return 3
"""
ENCODE = """
from flcache.encoder import ContextRule, EncoderSource, load_encoder
encode = benchmark("encode")
encode.ENCODER.update(hidden_size=48, num_hidden_layers=1)  # small: what is around the encoder is what counts
videos, numbers = Path(sys.argv[1]), itertools.count()
files = encode.find_files(videos, videos / "train.csv", int(sys.argv[2]))
model = load_encoder(EncoderSource(architecture=encode.ENCODER), context=ContextRule("full"))
def once():
    with tempfile.TemporaryDirectory() as folder:
        encode.flcache_encode(files, model, Path(folder) / "cache")
    return len(files)
"""
STEP = """
step = benchmark("predictor_step")
one = step.stepper(*step.ours(sys.argv[1]), step.a_batch(1))
def once():
    for _ in range(5):
        one()
    return 5
"""
TRAIN = """
import threading
import numpy as np
from flcache.cache import CacheWriter
from flcache.config import load_config
from flcache.pipelines import train
from flcache.training.loop import Run
home, clips = tempfile.mkdtemp(dir=sys.argv[1]), 16
noise = np.random.default_rng(0).standard_normal((8, 16, 16, 1024), dtype=np.float32)
names = [f"clip{number}" for number in range(clips)]
CacheWriter(home + "/cache", noise.shape, context="step").write("train", names, [noise] * clips)
settings = [f"cache.dir={home}/cache", f"training.dir={home}/training", f"predictor.preset={sys.argv[2]}"]
settings += ["training.device=cpu", "training.precision=no", "training.batch_size=1", "training.rollout_steps=1"]
Path(home, "empty.yaml").touch()
asked, done, step = threading.Semaphore(0), threading.Semaphore(0), Run._optimise
def when_asked(*given):
    done.release()  # the step before, with its log
    asked.acquire()
    return step(*given)
Run._optimise = when_asked
threading.Thread(target=train.run, args=(load_config(home + "/empty.yaml", settings),), daemon=True).start()
done.acquire()
def once():
    asked.release()
    done.acquire()
    return 1
"""


def benchmarks(folder: Path, smallest: bool) -> dict[str, tuple[str, list[str]]]:
    """What a process runs, and its arguments, by name. `decode` runs one file each time that it is told to."""
    cache, videos = str(folder / "cache"), str(folder / "videos")
    found = {
        "loader, unchecked": (LOADER, [cache, "off"]),
        "loader, checked": (LOADER, [cache, "always"]),
        "encode": (ENCODE, [videos, "1" if smallest else "16"]),
        "training step": (STEP, ["tiny"]),
        "flcache train": (TRAIN, [str(folder), "tiny" if smallest else "small"]),
    }
    files = [str(path) for path in sorted(VIDEOS.rglob("*.*")) if path.suffix in KINDS]
    return found | ({"decode": (DECODE, files)} if files else {})


def prepare(folder: Path, smallest: bool) -> None:
    """A cache of noise and a few videos, written by this checkout."""
    import numpy as np

    from flcache.cache import CacheWriter
    from flcache.videos import write_dataset

    noise = np.random.default_rng(0).standard_normal((8, 16, 16, 1024), dtype=np.float32)
    writer = CacheWriter(folder / "cache", noise.shape, codec="float16", spec={"encoder": "noise"}, context="step")
    names = [f"clip{number}" for number in range(16 if smallest else 128)]
    writer.write("train", names, [noise] * len(names))
    write_dataset(folder / "videos", train_videos=1 if smallest else 8, val_videos=0, frames=64, size=340, fps=16)


class Checkout:
    """A process of one checkout that measures when it is told to."""

    def __init__(self, folder: Path, program: str, arguments: list[str]) -> None:
        own = folder / ".venv" / "bin" / "python"
        command = [str(own) if own.exists() else sys.executable, "-c", PREAMBLE + program + SERVE, *arguments]
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._answer()

    def measure(self) -> tuple[float, float]:
        """Wall and CPU seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        wall, cpu = map(float, self._answer().split())
        return wall, cpu

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline() or sys.exit(f"{self._process.args[0]} ended")  # type: ignore[index]


def compare(before: Path, program: str, arguments: list[str], rounds: int) -> dict[str, dict[str, float]]:
    checkouts = [Checkout(folder, program, arguments) for folder in (before, HERE)]
    parts = len(arguments) if program is DECODE else 1
    figures = []
    for turn in range(rounds):
        measured = [[0.0, 0.0], [0.0, 0.0]]
        for part in range(parts):
            for place in (0, 1) if (turn + part) % 2 else (1, 0):  # the machine is slower for whoever comes second
                spent = checkouts[place].measure()
                measured[place] = [total + one / parts for total, one in zip(measured[place], spent, strict=True)]
        figures.append(measured)
    for checkout in checkouts:
        checkout.close()
    found = {}
    for kind, name in enumerate(("wall", "cpu")):
        pairs = [(old[kind], new[kind]) for old, new in figures]
        old, new = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(old / new for old, new in pairs)
        found[name] = {"before_ms": round(old, 3), "after_ms": round(new, 3), "ratio": round(ratio, 3)}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="benchmarks whose name starts so")
    parser.add_argument("--smallest", action="store_true", help="as little as shows that everything runs")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="flcache-bench-", dir=".") as name:
        folder = Path(name).resolve()
        prepare(folder, options.smallest)
        for name, (program, given) in benchmarks(folder, options.smallest).items():
            if name.startswith(options.only):
                print(json.dumps({name: compare(options.before.resolve(), program, given, options.rounds)}), flush=True)


if __name__ == "__main__":
    main()
