"""The order of an epoch: a pure function of (n, seed, epoch, window), the same for any number of ranks and threads.

Random numbers are the raw 64-bit output of the Philox4x64 counter generator, keyed with sha256 of seed and epoch; the
order is their stable sort. Neither depends on the version of numpy, as its `permutation` may.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def epoch_order(n: int, *, seed: int, epoch: int, window: int | None = None) -> NDArray[np.int64]:
    """(n,) a permutation of `0 .. n - 1`.

    With `window`, the clips are cut into runs of `window` consecutive ones; the runs are shuffled, and the clips within
    each run, so that reading stays local.
    """
    key = int.from_bytes(hashlib.sha256(f"flc1/{seed}/{epoch}".encode()).digest()[:16], "little")
    generator = np.random.Philox(key=key)
    clip_keys = np.asarray(generator.random_raw(n), dtype=np.uint64)
    if window is None:
        return np.argsort(clip_keys, kind="stable").astype(np.int64)
    runs = np.arange(n) // window
    num_runs = -(-n // window)
    run_rank = np.argsort(np.argsort(generator.random_raw(num_runs), kind="stable"), kind="stable")
    return np.lexsort([clip_keys, run_rank[runs]]).astype(np.int64)


def rank_share(
    order: NDArray[np.int64], *, start: int, batch_size: int, rank: int, world_size: int
) -> NDArray[np.int64]:
    """What `rank` takes of the global batch that starts at `start`.

    A global batch is the next `batch_size * world_size` clips of the order, and the ranks' shares, put one after the
    other, are that batch. A short last batch is shared evenly, so that a rank may get one clip less, or none.
    """
    batch = order[start : start + batch_size * world_size]
    return np.array_split(batch, world_size)[rank]
