"""python kill_encode.py CONFIG CACHE SEED TRIALS: encode in child processes that are killed, then finished.

Writes CACHE-whole by an unkilled run, then CACHE-<trial> by a run that gets SIGKILL at a random moment and one that
finishes it. Imports everything once and forks, so that a trial costs its encoding and not its imports. Prints one line
a trial: the moment in seconds, and the commits that were there when the run died.
"""

from __future__ import annotations

import os
import random
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
    whole_s = min(finish(config, Path(f"{prefix}-whole")), finish(config, Path(f"{prefix}-again")))
    for trial in range(trials):
        cache = Path(f"{prefix}-{trial}")
        child = start(config, cache)
        moment = moments.uniform(0.1, 0.95) * whole_s
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        commits = len(list((cache / "commits").glob("*.json"))) if cache.exists() else 0
        print(f"killed {os.WIFSIGNALED(status)} {moment:.3f} {commits}", flush=True)
        finish(config, cache)


if __name__ == "__main__":
    main()
