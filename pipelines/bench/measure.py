"""flcache's loader and a bare ring, each in a process of its own:
`python -m flcache.pipelines.bench.measure FOLDER LOADER THREADS warm|cold`.

FOLDER holds a cache, and `rivals.py` says what is printed.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flcache.cache import LatentCache, LatentLoader

from .rivals import BATCH_SIZE, Epochs, measure

SPARE_BUFFERS = 2


def _flcache(
    folder: Path, threads: int, *, cache: str = "cache", steps: int | None = None, **options: Any
) -> tuple[Epochs, int]:
    opened = LatentCache(folder / cache, "train")
    num_steps = steps or opened.latent_shape[0]
    options |= {"context_steps": 1, "allow_leak": True, "threads": threads, "steps": (0, num_steps)}
    loader = LatentLoader(opened, batch_size=BATCH_SIZE, **options)
    num_bytes = opened.spec.codec.clip_bytes((num_steps, *opened.latent_shape[1:]))
    return lambda: (batch.latents for batch in loader), num_bytes


def _ring(folder: Path, threads: int) -> tuple[Epochs, int]:
    """Bare preadv of whole clips into reused buffers: the upper limit for any loader."""
    cache = LatentCache(folder / "cache", "train")
    num_bytes = cache.spec.codec.clip_bytes(cache.latent_shape)
    places: list[tuple[int, int]] = []
    descriptors: dict[int, int] = {}
    for index in range(len(cache)):
        shard, row = cache.locate(index)
        offset = int(cache.reader(shard).rows["payloads"]["offset"][row, 0])
        path = cache.path / "shards" / f"{cache.commits[shard].name}.tar"
        descriptors.setdefault(shard, os.open(path, os.O_RDONLY))
        places.append((descriptors[shard], offset))
    buffers = [torch.zeros(BATCH_SIZE, num_bytes, dtype=torch.uint8) for _ in range(threads + SPARE_BUFFERS)]
    pool = ThreadPoolExecutor(threads)

    def read(number: int, batch: list[int]) -> torch.Tensor:
        buffer = buffers[number % len(buffers)][: len(batch)]
        for clip, index in zip(buffer.numpy(), batch, strict=True):
            descriptor, offset = places[index]
            os.preadv(descriptor, [memoryview(clip)], offset)
        return buffer

    def epoch() -> Iterator[torch.Tensor]:
        order = np.random.permutation(len(places)).tolist()
        pending: deque[Future[torch.Tensor]] = deque()
        for number, start in enumerate(range(0, len(order), BATCH_SIZE)):
            if len(pending) == len(buffers) - 1:  # the consumer still reads the remaining one
                yield pending.popleft().result()
            pending.append(pool.submit(read, number, order[start : start + BATCH_SIZE]))
        for batch in pending:
            yield batch.result()

    return epoch, num_bytes


LOADERS: dict[str, Callable[[Path, int], tuple[Epochs, int]]] = {
    "ring": _ring,
    "flcache": partial(_flcache, standardise=False, verify="off"),
    "flcache verified": partial(_flcache, standardise=False, verify="always"),
    "flcache 2 steps": partial(_flcache, standardise=False, verify="off", steps=2),
    "flcache standardised": partial(_flcache, verify="off"),
    "flcache standardised int8": partial(_flcache, verify="off", cache="int8"),
}

if __name__ == "__main__":
    folder, name, threads, memory = sys.argv[1:]
    loader, num_bytes = LOADERS[name](Path(folder), int(threads))
    print(json.dumps(measure(Path(folder), loader, num_bytes, workers=int(threads), cold=memory == "cold")))
