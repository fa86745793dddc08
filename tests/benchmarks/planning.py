"""From process start to the first clip, decoded and stored, and peak memory, where spec and plan are there already.

    python tests/benchmarks/planning.py [--videos 300000] [--clips 10000000] [--folder DIR]

Makes a folder of videos (hard links to a few real ones) with its plan, and a plan of many more clips over them; then
starts `flcache encode` as a rerun and as an array job, in processes that end with their first clip. Most of the seconds
are imports: the encoder, which takes more of them, is loaded while the first clips are decoded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from flcache.cache.format.plan import _GROUP_ROWS, _SOURCES
from flcache.cache.format.plan_table import PLAN_SCHEMA
from flcache.cache.format.record import canonical_json
from flcache.config import load_config
from flcache.pipelines.setup.planning import begin_planning, finish_planning
from flcache.videos import write_dataset

FIRST_CLIP = """
import json, os, sys, time
from pathlib import Path
from flcache.engines import local
from flcache.videos.pool import DecodePool

decode, encode, found = DecodePool.decode, local.run, {}

def since_start():
    return time.monotonic() - float(sys.argv[1])

def decode_and_note(*arguments):
    for key, clip in decode(*arguments):
        found.setdefault("decoded", [type(clip).__name__, since_start()])
        yield key, clip

def end(event):
    peak_kb = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    found.update(stored=[type(event).__name__, since_start()], cpu_s=time.process_time(), peak_mb=peak_kb // 1024)
    print(json.dumps(found), flush=True)
    os._exit(0)

DecodePool.decode = decode_and_note
local.run = lambda job, tasks, on_event, **options: encode(job, tasks, end, **options)

from flcache.pipelines.cli import main
main(["encode", *sys.argv[2:]])
"""
ENCODER = {
    "model_type": "vjepa2",
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "crop_size": 32,
    "patch_size": 8,
    "frames_per_clip": 16,
    "pred_hidden_size": 12,
    "pred_num_attention_heads": 1,
    "pred_num_hidden_layers": 1,
}
CLIPS_A_SHARD = 64
CLIP_BYTES = 8 * 4 * 4 * 24 * 2
LINKS_A_FILE = 60_000  # ext4 allows 65,000
FOLDERS = 400


def make_videos(root: Path, number: int) -> list[str]:
    """Annotates `number` videos in `train.csv`; returns their paths."""
    made = root / "made"
    write_dataset(made, train_videos=number // LINKS_A_FILE + 1, val_videos=0, frames=40, size=64, fps=8)
    files = sorted(made.rglob("*.mp4"))
    paths, lines = [], ["label,youtube_id,time_start,time_end,split\n"]
    for video in range(number):
        label, name = f"class{video % FOLDERS}", f"v{video:08d}"
        folder = root / label
        if video < FOLDERS:
            folder.mkdir()
        os.link(files[video % len(files)], folder / f"{name}_000000_000005.mp4")
        lines.append(f"{label},{name},0,5,train\n")
        paths.append(f"{label}/{name}_000000_000005")
    (root / "train.csv").write_text("".join(lines))
    return paths


def write_config(folder: Path, root: Path) -> Path:
    content = {
        "dataset": {"root": str(root), "train": str(root / "train.csv")},
        "encoder": {"architecture": ENCODER},
        "encode": {"decode_workers": 1, "device": "cpu"},
        "cache": {"codec": "float16", "shard_bytes": CLIPS_A_SHARD * CLIP_BYTES},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_long_plan(path: Path, videos: list[str], clips: int, sources: dict[str, Any]) -> None:
    """The plan that `clips` clips would have, written chunk by chunk."""
    path.parent.mkdir()
    schema = PLAN_SCHEMA.with_metadata({_SOURCES: canonical_json({"train": sources})})
    with pq.ParquetWriter(path, schema, compression="zstd", version="2.6", write_page_checksum=True) as writer:
        for table in _chunks(videos, clips, schema):
            writer.write_table(table, row_group_size=_GROUP_ROWS)


def _chunks(videos: list[str], clips: int, schema: Any) -> Iterator[Any]:
    seconds = np.arange(16) / 4
    for start in range(0, clips, 8 * _GROUP_ROWS):
        numbers = np.arange(start, min(clips, start + 8 * _GROUP_ROWS))
        count = len(numbers)
        ids = [f"v{number:08d}" for number in numbers.tolist()]
        offsets = np.arange(0, 16 * count + 1, 16, dtype=np.int32)
        columns = {
            "clip_id": [f"{name}-0" for name in ids],
            "video": [videos[number % len(videos)] for number in numbers.tolist()],
            "video_id": ids,
            "label": ["jump"] * count,
            "split": ["train"] * count,
            "start_s": np.zeros(count),
            "timestamps": pa.ListArray.from_arrays(offsets, np.tile(seconds, count)),
            "shard": (numbers // CLIPS_A_SHARD).astype(np.int32),
            "slot": (numbers % CLIPS_A_SHARD).astype(np.int32),
            "frames": np.full(count, 16, np.int32),
            "stride": pa.nulls(count, pa.int32()),
            "short": ["pad"] * count,
        }
        yield pa.table(columns, schema=schema)


def measure(name: str, config: Path, *arguments: str) -> None:
    command = [sys.executable, "-c", FIRST_CLIP, str(time.monotonic()), "--config", str(config), *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads(result.stdout.splitlines()[-1])
    (decoded, decoded_s), (stored, stored_s) = found["decoded"], found["stored"]
    if (decoded, stored) != ("DecodedClip", "ClipDone"):
        sys.exit(f"{name}: the first clip is a {decoded} and a {stored}")
    print(
        f"{name}: first clip decoded {decoded_s:.1f} s after the start, stored after {stored_s:.1f} s, "
        f"{found['cpu_s']:.1f} s of CPU, peak memory {found['peak_mb']} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=300_000)
    parser.add_argument("--clips", type=int, default=10_000_000, help="of a second plan; 0 for none")
    parser.add_argument("--folder", type=Path, help="where to make them; needs hard links")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, root = Path(name), Path(name) / "videos"
        root.mkdir()
        videos = make_videos(root, options.videos)
        config_file = write_config(folder, root)
        caches = {options.videos: folder / "cache", options.clips: folder / "long"}
        config = load_config(config_file, [f"cache.dir={folder}/cache"])
        started = time.perf_counter()
        planning = begin_planning(folder / "cache", config)
        finish_planning(planning, (8, 4, 4, 24))
        print(f"{options.videos} videos planned in {time.perf_counter() - started:.1f} s", flush=True)
        sources = {**planning.sources["train"], "clip_bytes": CLIP_BYTES}
        if options.clips:
            write_long_plan(folder / "long" / "plan.parquet", videos, options.clips, sources)
        else:
            del caches[options.clips]
        for clips, cache in caches.items():
            for kind, part in (("first run", []), ("rerun", []), ("job 1 of 4", ["--shards", "1/4"])):
                measure(f"{clips} clips, {kind}", config_file, f"cache.dir={cache}", *part)
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
