"""What a clip costs in a long video: milliseconds of CPU and of time, clip after clip.

    python tests/benchmarks/long_videos.py [--minutes 1 10 40] [--clips 64] [--rounds 3] [--old CHECKOUT]

Makes the videos with PyAV (320 x 240, 25 frames a second) and decodes as many clips as a shard holds, of 16 frames at
4 a second, by a DecodePool of one worker. `--old` measures another checkout, with a `.venv` of its own, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np

HERE = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT, FPS, CLIP_S = 320, 240, 25, 4
DECODE = """
import json, resource, sys, time
from pathlib import Path
from flcache.videos import ClipRequest, DecodePool

def used():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

path, clips, repeats = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
requests = [ClipRequest(16, 4.0 * k, tuple(4.0 * k + i / 4 for i in range(16)), None, "pad") for k in range(clips)]
started, found = used(), 0
with DecodePool(1, 60) as pool:
    list(pool.decode([(0, path, requests[0])]))
    begun = time.perf_counter()
    for _ in range(repeats):
        found += sum(hasattr(clip, "frames") for _, clip in pool.decode((k, path, r) for k, r in enumerate(requests)))
    seconds = time.perf_counter() - begun
assert found == repeats * clips
print(json.dumps({"wall_ms": 1000 * seconds / found, "cpu_ms": 1000 * (used() - started) / found}))
"""


def make_video(path: Path, minutes: int) -> None:
    """A picture that moves, with some noise."""
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, 2 * WIDTH, 3)).astype(np.float32)
    for axis in (0, 1, 0, 1):
        noise = (noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)) / 3
    wide = noise.astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = WIDTH, HEIGHT, "yuv420p", 1
        for number in range(minutes * 60 * FPS):
            left = number % WIDTH
            picture = np.ascontiguousarray(wide[:, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def measure(checkout: Path, path: Path, minutes: int, clips: int) -> dict[str, float]:
    """Of as many clips as a shard has, or all of a shorter video several times."""
    own = checkout / ".venv" / "bin" / "python"
    there = min(clips, minutes * 60 // CLIP_S)
    command = [
        str(own) if own.exists() else sys.executable,
        "-c",
        DECODE,
        str(path),
        str(there),
        str(max(1, clips // there)),
    ]
    result = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(result.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 10, 40])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--old", type=Path)
    options = parser.parse_args()
    checkouts = {**({"old": options.old.resolve()} if options.old else {}), "this": HERE}
    with tempfile.TemporaryDirectory() as name:
        videos = {minutes: Path(name) / f"{minutes}.mp4" for minutes in options.minutes}
        for minutes, path in videos.items():
            make_video(path, minutes)
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            for minutes, path in videos.items():
                for label, checkout in checkouts.items():
                    found.setdefault((label, minutes), []).append(measure(checkout, path, minutes, options.clips))
    for label in checkouts:
        for kind in ("wall_ms", "cpu_ms"):
            costs = {m: statistics.median(each[kind] for each in found[label, m]) for m in options.minutes}
            shown = ", ".join(f"{minutes} min {cost:.1f}" for minutes, cost in costs.items())
            longest, shortest = costs[max(costs)], costs[min(costs)]
            print(f"{label}: {kind} a clip: {shown}; longest / shortest {longest / shortest:.2f}", flush=True)


if __name__ == "__main__":
    main()
