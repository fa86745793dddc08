"""PYTHONPATH=tests python tests/cache/kill_bucket.py URL FOLDER SEED KILLS: a cache in a bucket, and SIGKILL.

A process that writes a cache below URL is killed at a random moment, and so are its followers, three in all; the last
one finishes, and the files there must be those of an unkilled run in a folder. Then processes that read it all, through
a disk cache of two shards in FOLDER, are killed in the same way, and the last one must read every clip as it is. The
disk cache is watched: it may never exceed its limit. Until there were KILLS of either kind. Prints a line for each.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

from small_cache import clip_latents, make_cache
from trees import tree
from watched import held_bytes

from flcache.cache import LatentCache, LatentLoader
from flcache.cache.storage import Store, open_store

SIZE = {"num_train": 8, "num_val": 2}
IN_A_ROW = 3
LOCAL_BYTES = 60_000
"""Two shards, and a few small files."""


def write(store: Store) -> None:
    make_cache(store, **SIZE)


def read(store: Store) -> None:
    for split in ("train", "val"):
        cache = LatentCache(store, split)
        options = {"batch_size": 2, "context_steps": 1, "drop_last": False, "standardise": False, "shuffle_block": 8}
        for batch in LatentLoader(cache, **options):
            for clip_id, latents in zip(batch.ids, batch.latents, strict=True):
                assert latents.numpy().tobytes() == clip_latents(clip_id).astype("float16").tobytes(), clip_id


def start(run: Callable[[Store], None], store: Store) -> int:
    child = os.fork()
    if child:
        return child
    try:
        run(store)
    except BaseException as error:
        print(f"child: {error!r}", flush=True)
        os._exit(1)
    os._exit(0)


def finish(run: Callable[[Store], None], store: Store) -> float:
    started_s = time.monotonic()
    _, status = os.waitpid(start(run, store), 0)
    if status:
        sys.exit(f"{store}: the unkilled {run.__name__} ended with {status}")
    return time.monotonic() - started_s


def kill(run: Callable[[Store], None], store: Store, moment_s: float, local: Path) -> bool:
    """Whether it was killed before it was done."""
    child, started_s = start(run, store), time.monotonic()
    while time.monotonic() - started_s < moment_s:
        watch(local)
        time.sleep(0.002)
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    watch(local)
    return not ended


def watch(local: Path) -> None:
    if (found := held_bytes(local)) > LOCAL_BYTES:
        sys.exit(f"{local}: holds {found} bytes, {LOCAL_BYTES} are allowed")


def killed(run: Callable[[Store], None], store: Store, typical_s: float, moments: random.Random, local: Path) -> int:
    """How often `run` was killed, before it could end: each follower goes on."""
    kills = 0
    for _ in range(IN_A_ROW):
        moment_s = moments.random() * typical_s
        if kill(run, store, moment_s, local):
            print(f"killed {run.__name__} {moment_s:.3f}", flush=True)
            kills += 1
    finish(run, store)
    return kills


def main() -> None:
    url, folder, seed, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    moments, local = random.Random(seed), folder / "local"
    whole = tree(make_cache(folder / "whole", **SIZE))

    counts: Counter[str] = Counter()
    for trial in count():
        store = open_store(f"{url}/{trial}", local_dir=str(local), local_bytes=LOCAL_BYTES)
        if not trial:
            typical_s = {run: finish(run, store) for run in (write, read)}
        elif min(counts[run.__name__] for run in (write, read)) >= kills:
            return
        else:
            counts["write"] += killed(write, store, typical_s[write], moments, local)
            there = store.direct()
            if {name: there.read(name, 2**30) for name in there.names()} != whole or list(store.unpublished()):
                sys.exit(f"{store}: other files than an unkilled run writes")
            shutil.rmtree(local)
            counts["read"] += killed(read, store, typical_s[read], moments, local)


if __name__ == "__main__":
    main()
