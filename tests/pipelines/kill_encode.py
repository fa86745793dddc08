"""python kill_encode.py CONFIG CACHE SEED TRIALS: encode in child processes that are killed, then finished.

Writes CACHE-whole by an unkilled run, then CACHE-<trial> by a run that gets SIGKILL at a random moment and one that
finishes it. The moment is a random time after a random number of commits, so that a busy machine moves it little; a run
that was done before is no trial, and another takes its place. Imports everything once and forks, so that a trial costs
its encoding and not its imports. Prints one line a trial: the moment in seconds, and the commits that were there when
the run died.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from flcache.config import load_config
from flcache.encoder import describe_encoder
from flcache.pipelines import encode


def start(config: str, cache: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        encode.run(load_config(config, [f"cache.dir={cache}"]))
    except BaseException as error:
        print(f"child: {error!r}", flush=True)
        os._exit(1)
    os._exit(0)


def finish(config: str, cache: Path) -> float:
    started = time.monotonic()
    _, status = os.waitpid(start(config, cache), 0)
    if status:
        sys.exit(f"{cache}: the unkilled run ended with {status}")
    return time.monotonic() - started


def main() -> None:
    config, prefix, seed, trials = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    describe_encoder(load_config(config).encoder)  # imports the model's modules
    moments = random.Random(seed)
    whole = Path(f"{prefix}-whole")
    whole_s, shards = finish(config, whole), commits(whole)
    trial = runs = 0
    while trial < trials:
        runs += 1
        if runs > 10 * trials:
            sys.exit(f"only {trial} of {runs} runs were killed before they were done")
        cache = Path(f"{prefix}-{trial}")
        wanted = moments.randrange(shards)
        delay_s = moments.random() * (whole_s / (2 * shards) if wanted else whole_s)  # starting takes half
        if moment := killed_after(start(config, cache), cache, wanted, delay_s):
            print(f"killed {moment:.3f} {commits(cache)} {shards}", flush=True)
            finish(config, cache)
            trial += 1
        else:
            shutil.rmtree(cache)


def killed_after(child: int, cache: Path, wanted: int, delay_s: float) -> float | None:
    """Kill `child` so long after it has `wanted` commits; returns the moment, None if it was done before."""
    started = time.monotonic()
    while commits(cache) < wanted and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)
    time.sleep(delay_s)
    moment = time.monotonic() - started
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return moment if os.WIFSIGNALED(status) else None


def commits(cache: Path) -> int:
    return len(list((cache / "commits").glob("*.json")))


if __name__ == "__main__":
    main()
