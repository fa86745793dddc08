"""Loaders to compare with, and how any loader is measured. Imports nothing of flcache.

So the interpreter of another environment can run it: `python rivals.py FOLDER NAME write` copies the clips of the cache
in FOLDER, `python rivals.py FOLDER NAME WORKERS warm|cold` measures. Prints JSON: clips/s in steady state (from the
first batch of an epoch to its last, the median of seven warm epochs), GB/s, peak memory of all processes, CPU seconds
per GB.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import resource
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH_SIZE = 8
WARM_EPOCHS = 7
RIVALS = {"webdataset": "webdataset", "litdata": "litdata", "mosaicml-streaming": "streaming"}
"""The modules they are imported from."""
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
Epochs = Callable[[], Iterable[Any]]
"""Every call is an epoch of batches."""
Place = tuple[str, int, int]
"""Tar, and where in it the .npy of a clip is: offset and bytes."""


def write(folder: Path, name: str) -> None:
    """Write the clips of `folder / "cache"` in the format of the rival `name`; webdataset reads the cache as it is."""
    places = _places(folder)
    if name == "litdata":
        from litdata import optimize

        optimize(fn=_sample, inputs=places, output_dir=f"{folder}/litdata", chunk_bytes="256MB")
    elif name == "mosaicml-streaming":
        from streaming import MDSWriter

        first = _array(places[0])
        columns = {"latents": f"ndarray:{first.dtype}:{','.join(map(str, first.shape))}"}
        with MDSWriter(out=f"{folder}/mosaicml-streaming", columns=columns, size_limit="256mb") as writer:
            for place in places:
                writer.write(_sample(place))


def measure(folder: Path, loader: Epochs, num_bytes: int, *, workers: int, cold: bool) -> dict[str, float]:
    """Measure `loader` of clips of `num_bytes`; `workers` are its processes or threads."""
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


def _epoch(loader: Epochs) -> tuple[int, float]:
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


def _webdataset(folder: Path, workers: int) -> tuple[Epochs, int]:
    import webdataset

    tars = sorted(map(str, (folder / "cache" / "shards").glob("train-*.tar")))
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
        .shuffle(64)
        .decode()
        .to_tuple("latents.npy")
        .map(_first_tensor)
        .batched(BATCH_SIZE, collation_fn=torch.stack)
    )
    return lambda: webdataset.WebLoader(dataset, num_workers=workers, batch_size=None), _clip_bytes(folder)


def _litdata(folder: Path, workers: int) -> tuple[Epochs, int]:
    import litdata

    dataset = litdata.StreamingDataset(f"{folder}/litdata", shuffle=True)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=_stack)
    return lambda: loader, _clip_bytes(folder)


def _mosaicml_streaming(folder: Path, workers: int) -> tuple[Epochs, int]:
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=f"{folder}/mosaicml-streaming", shuffle=True, batch_size=BATCH_SIZE)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=_stack)
    return lambda: loader, _clip_bytes(folder)


def _first_tensor(sample: tuple[Any]) -> torch.Tensor:
    return torch.from_numpy(sample[0])


def _stack(samples: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(np.asarray(sample["latents"])) for sample in samples])


def _places(folder: Path) -> list[Place]:
    """Every clip of the training split, in the order of the cache."""
    found = []
    for path in sorted((folder / "cache" / "shards").glob("train-*.tar")):
        with tarfile.open(path) as tar:
            found += [
                (str(path), member.offset_data, member.size) for member in tar if member.name.endswith(".latents.npy")
            ]
    return found


def _array(place: Place) -> Any:
    path, offset, size = place
    with Path(path).open("rb") as stream:
        stream.seek(offset)
        return np.load(io.BytesIO(stream.read(size)))


def _sample(place: Place) -> dict[str, Any]:
    return {"latents": _array(place)}


def _clip_bytes(folder: Path) -> int:
    return int(_array(_places(folder)[0]).nbytes)


def _import_torchvision() -> None:
    """Rivals import it, and PyPI's is a CUDA build: beside a CPU torch it lacks two operators, not used here."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        importlib.import_module("torchvision")


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


LOADERS: dict[str, Callable[[Path, int], tuple[Epochs, int]]] = {
    "webdataset": _webdataset,
    "litdata": _litdata,
    "mosaicml-streaming": _mosaicml_streaming,
}

if __name__ == "__main__":
    folder, name, *how = sys.argv[1:]
    _import_torchvision()
    if how == ["write"]:
        write(Path(folder), name)
    else:
        loader, num_bytes = LOADERS[name](Path(folder), int(how[0]))
        found = measure(Path(folder), loader, num_bytes, workers=int(how[0]), cold=how[1] == "cold")
        print(json.dumps(found))
