"""python kill_encode.py CONFIG CACHE SEED TRIALS [--processes N] [--one]: encode in processes that are killed.

Writes CACHE-whole by an unkilled run. Then a run of N encoder processes gets SIGKILL at a random moment: with all its
processes, after which a second run finishes it; or, with `--one`, one of its processes at random, which the run
survives unless it is the first. What comes out must be CACHE-whole, byte for byte.

The moment is a random time after a random number of commits, so that a busy machine moves it little; a run that was
done before is no trial, and another takes its place. Imports everything once and forks, so that a trial costs its
encoding and not its imports. Prints one line a trial: the moment in seconds, the commits that were there when it died,
and how many there are in all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

from flcache.config import load_config
from flcache.encoder import describe_encoder
from flcache.engines import processes
from flcache.pipelines import encode


def start(config: str, cache: Path, encoders: int) -> int:
    child = os.fork()
    if child:
        return child
    processes.run = partial(processes.run, context=multiprocessing.get_context("fork"))
    try:
        encode.run(load_config(config, [f"cache.dir={cache}", f"encode.devices={encoders}"]))
    except BaseException as error:
        print(f"child: {error!r}", flush=True)
        os._exit(1)
    os._exit(0)


def finish(config: str, cache: Path, encoders: int) -> float:
    started = time.monotonic()
    _, status = os.waitpid(start(config, cache, encoders), 0)
    if status:
        sys.exit(f"{cache}: the unkilled run ended with {status}")
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("prefix")
    parser.add_argument("seed", type=int)
    parser.add_argument("trials", type=int)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--one", action="store_true")
    options = parser.parse_args()
    config, encoders = options.config, options.processes
    describe_encoder(load_config(config).encoder)  # imports the model's modules
    moments = random.Random(options.seed)
    whole = Path(f"{options.prefix}-whole")
    whole_s, shards = finish(config, whole, encoders), commits(whole)
    trial = runs = 0
    while trial < options.trials:
        runs += 1
        if runs > 10 * options.trials:
            sys.exit(f"only {trial} of {runs} runs were killed before they were done")
        cache = Path(f"{options.prefix}-{trial}")
        wanted = moments.randrange(shards)
        delay_s = moments.random() * (whole_s / (2 * shards) if wanted else whole_s)  # starting takes half
        run = start(config, cache, encoders)
        moment = wait_for(run, cache, wanted, delay_s)
        if os.waitid(os.P_PID, run, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            os.waitpid(run, 0)
            shutil.rmtree(cache)
            continue
        there = commits(cache)
        kill(run, moments, one=options.one)
        _, status = os.waitpid(run, 0)
        if not os.WIFSIGNALED(status) and status:
            sys.exit(f"{cache}: a run that lost a process ended with {status}")
        if os.WIFSIGNALED(status):
            finish(config, cache, encoders)
        if tree(cache) != tree(whole):
            sys.exit(f"{cache}: other bytes than {whole}, killed after {moment:.3f} s with {there} commits")
        shutil.rmtree(cache)
        print(f"killed {moment:.3f} {there} {shards}", flush=True)
        trial += 1


def wait_for(run: int, cache: Path, wanted: int, delay_s: float) -> float:
    """Wait until so long after `run` has `wanted` commits, or has ended; returns the moment."""
    started = time.monotonic()
    while commits(cache) < wanted and not os.waitid(os.P_PID, run, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)
    time.sleep(delay_s)
    return time.monotonic() - started


def kill(run: int, moments: random.Random, *, one: bool) -> None:
    """Kill `run` and everything below it, or one of these."""
    found = [run, *below(run)]
    for process in [moments.choice(found)] if one else found:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:  # it ended with its parent
            continue


def below(process: int) -> list[int]:
    """The processes that it has started, and those that they have started."""
    try:
        children = [
            int(child)
            for thread in Path(f"/proc/{process}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except OSError:  # it has ended
        return []
    return [*children, *(grandchild for child in children for grandchild in below(child))]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` by its name there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def commits(cache: Path) -> int:
    return len(list((cache / "commits").glob("*.json")))


if __name__ == "__main__":
    main()
