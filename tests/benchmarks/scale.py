"""A cache of a million clips, without payloads: seconds to open it and to start an epoch, and peak memory.

    python tests/benchmarks/scale.py [--clips 1000000]

The second process, which is measured, has imported everything before its clock starts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import xxhash

from flcache.cache import Commit, assign_shards, create_or_check, write_plan
from flcache.cache.format.commit import write_commit
from flcache.cache.format.index import index_bytes, row_dtype
from flcache.cache.storage import open_store

SHAPE = (8, 16, 16, 1024)
SHARD_BYTES = 256 * 2**20
OPEN = """
import sys, time
from pathlib import Path
import flcache.cache.read.loader
from flcache.cache import EpochSampler, LatentCache
started = time.perf_counter()
cache = LatentCache(sys.argv[1], "train")
opened = time.perf_counter()
next(EpochSampler(len(cache), batch_size=8).remaining())
begun = time.perf_counter()
print(f"{len(cache)} clips: opened in {opened - started:.2f} s, an epoch begins after {begun - opened:.2f} s, "
      f"peak memory {int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024:.0f} MB")
"""


def write_skeleton(cache_dir: Path, num_clips: int) -> None:
    """Spec, plan, commits and idx of `num_clips` clips; no tars."""
    context = {"mode": "step", "seen_until": list(range(SHAPE[0]))}
    hard = {"encoder": {"name": "none"}, "context": context, "layout": {"shape": list(SHAPE)}, "codec": "float16"}
    spec, _ = create_or_check(cache_dir, hard, {})
    ids = [f"clip{number:07d}-0" for number in range(num_clips)]
    columns = {"clip_id": ids, "video": ids, "video_id": ids, "label": "jump", "start_s": 0.0, "timestamps": None}
    clip_bytes = spec.codec.clip_bytes(SHAPE)
    plan = assign_shards(pd.DataFrame(columns), "train", clip_bytes=clip_bytes, shard_bytes=SHARD_BYTES, seed=0)
    for shard, count in write_plan(cache_dir, plan).groupby("shard").size().items():
        rows = np.zeros(count, row_dtype(SHAPE[0], 1))
        rows["slot"], rows["valid_steps"] = np.arange(count), SHAPE[0]
        rows["payloads"]["bytes"] = clip_bytes
        rows["payloads"]["offset"][:, 0] = (1 + np.arange(count)) * (clip_bytes + 8192)
        path = cache_dir / "shards" / f"train-{shard:06d}.idx"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(index_bytes(rows))
        _commit(cache_dir, spec.fingerprint, int(shard), int(count), clip_bytes, path.read_bytes())


def _commit(cache_dir: Path, fingerprint: str, shard: int, clips: int, clip_bytes: int, index: bytes) -> None:
    commit = Commit(
        split="train",
        shard=shard,
        fingerprint=fingerprint,
        clips=clips,
        failed=0,
        tar_bytes=(clips + 1) * (clip_bytes + 8192),
        tar_xxh3_64="0" * 16,
        idx_xxh3_64=xxhash.xxh3_64_hexdigest(index),
        failures_xxh3_64=None,
        positions=clips * SHAPE[0] * SHAPE[1] * SHAPE[2],
        decoders={"decord": clips},
        fidelity=None,
        keep_fidelity=None,
    )
    write_commit(open_store(cache_dir), commit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_skeleton(Path(folder), options.clips)
        subprocess.run([sys.executable, "-c", OPEN, folder], check=True)


if __name__ == "__main__":
    main()
