"""One loader, in a process of its own: `python -m flcache.pipelines.bench.measure FOLDER LOADER WORKERS warm|cold`.

Prints JSON: clips/s in steady state (from the first batch of an epoch to its last, the median of seven warm epochs),
GB/s, peak memory of all processes and CPU seconds per GB. FOLDER holds `cache` and the copies by `write_rivals`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flcache.cache import LatentCache, LatentLoader
from flcache.encoder.torchvision_ops import ensure_torchvision

BATCH_SIZE = 8
WARM_EPOCHS = 7
SPARE_BUFFERS = 2


def write_rivals(folder: Path, names: Iterable[str]) -> None:
    """Write the clips of `folder / "cache"` in the format of each of the rivals `names`."""
    ensure_torchvision()  # rivals import it
    cache = LatentCache(folder / "cache", "train")
    if "litdata" in names:
        from litdata import optimize

        sample = partial(_sample, folder / "cache")  # litdata sends it to other processes
        optimize(fn=sample, inputs=list(range(len(cache))), output_dir=f"{folder}/litdata", chunk_bytes="256MB")
    if "mosaicml-streaming" in names:
        from streaming import MDSWriter

        shape = ",".join(map(str, cache.latent_shape))
        columns = {"latents": f"ndarray:{cache[0].latents.dtype}:{shape}"}
        with MDSWriter(out=f"{folder}/mosaicml-streaming", columns=columns, size_limit="256mb") as writer:
            for clip in map(cache.__getitem__, range(len(cache))):
                writer.write({"latents": clip.latents})


def measure(folder: Path, name: str, workers: int, *, cold: bool) -> dict[str, float]:
    """`workers` are threads for the loader and the ring, processes for the rivals."""
    if name in RIVALS:
        ensure_torchvision()
    loader, num_bytes = LOADERS[name](folder, workers)
    rates, cpu_s, clips = [], 0.0, 0
    for epoch in range(1 if cold else WARM_EPOCHS + 1):
        if cold:
            _drop_from_memory(folder)
        began_s = _cpu_s()
        counted, elapsed_s = _epoch(loader)
        if cold or epoch:  # the first warm epoch warms
            rates.append(counted / elapsed_s)
            cpu_s, clips = cpu_s + _cpu_s() - began_s, clips + counted
    clips_per_s = statistics.median(rates)
    return {
        "clips_per_s": clips_per_s,
        "gb_per_s": clips_per_s * num_bytes / 1e9,
        "peak_mb": _peak_mb(workers),
        "cpu_s_per_gb": cpu_s / (clips * num_bytes / 1e9),
    }


def _epoch(loader: Callable[[], Iterable[Any]]) -> tuple[int, float]:
    """Clips after the first batch, and the seconds they took."""
    clips, started_s = 0, None
    for batch in loader():
        if started_s is None:
            started_s = time.perf_counter()
        else:
            clips += len(batch)
            float(batch.reshape(-1)[0])
    assert started_s is not None
    return clips, time.perf_counter() - started_s


def _flcache(
    folder: Path, threads: int, *, cache: str = "cache", steps: int | None = None, **options: Any
) -> tuple[Callable[[], Iterable[Any]], int]:
    opened = LatentCache(folder / cache, "train")
    num_steps = steps or opened.latent_shape[0]
    options |= {"context_steps": 1, "allow_leak": True, "threads": threads, "steps": (0, num_steps)}
    loader = LatentLoader(opened, batch_size=BATCH_SIZE, **options)
    num_bytes = opened.spec.codec.clip_bytes((num_steps, *opened.latent_shape[1:]))
    return lambda: (batch.latents for batch in loader), num_bytes


def _ring(folder: Path, threads: int) -> tuple[Callable[[], Iterable[Any]], int]:
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


def _webdataset(folder: Path, workers: int) -> tuple[Callable[[], Iterable[Any]], int]:
    import webdataset

    tars = sorted(map(str, (folder / "cache" / "shards").glob("*.tar")))
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
        .shuffle(64)
        .decode()
        .to_tuple("latents.npy")
        .map(_first_tensor)
        .batched(BATCH_SIZE, collation_fn=torch.stack)
    )
    return lambda: webdataset.WebLoader(dataset, num_workers=workers, batch_size=None), _clip_bytes(folder)


def _litdata(folder: Path, workers: int) -> tuple[Callable[[], Iterable[Any]], int]:
    import litdata

    dataset = litdata.StreamingDataset(f"{folder}/litdata", shuffle=True)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=_stack)
    return lambda: loader, _clip_bytes(folder)


def _mosaicml_streaming(folder: Path, workers: int) -> tuple[Callable[[], Iterable[Any]], int]:
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=f"{folder}/mosaicml-streaming", shuffle=True, batch_size=BATCH_SIZE)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=_stack)
    return lambda: loader, _clip_bytes(folder)


LOADERS: dict[str, Callable[[Path, int], tuple[Callable[[], Iterable[Any]], int]]] = {
    "ring": _ring,
    "flcache": partial(_flcache, standardise=False, verify="off"),
    "flcache verified": partial(_flcache, standardise=False, verify="always"),
    "flcache 2 steps": partial(_flcache, standardise=False, verify="off", steps=2),
    "flcache standardised": partial(_flcache, verify="off"),
    "flcache standardised int8": partial(_flcache, verify="off", cache="int8"),
    "webdataset": _webdataset,
    "litdata": _litdata,
    "mosaicml-streaming": _mosaicml_streaming,
}
RIVALS = {"webdataset": "webdataset", "litdata": "litdata", "mosaicml-streaming": "streaming"}
"""The modules they are imported from."""


@lru_cache
def _opened(cache_dir: Path) -> LatentCache:
    return LatentCache(cache_dir, "train")


def _sample(cache_dir: Path, index: int) -> dict[str, Any]:
    return {"latents": _opened(cache_dir)[index].latents}


def _first_tensor(sample: tuple[Any]) -> torch.Tensor:
    return torch.from_numpy(sample[0])


def _stack(samples: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(np.asarray(sample["latents"])) for sample in samples])


def _clip_bytes(folder: Path) -> int:
    cache = LatentCache(folder / "cache", "train")
    return cache.spec.codec.clip_bytes(cache.latent_shape)


def _drop_from_memory(folder: Path) -> None:
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _cpu_s() -> float:
    """CPU seconds of this process and of its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_mb(workers: int) -> float:
    """Peak memory of this process, plus that of the largest child for each worker."""
    status = Path("/proc/self/status").read_text()  # getrusage's peak is inherited from the parent
    own = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    return (own + workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


if __name__ == "__main__":
    folder, name, workers, cold = sys.argv[1:]
    print(json.dumps(measure(Path(folder), name, int(workers), cold=cold == "cold")))
