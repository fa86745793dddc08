"""python tests/cluster/check_ray.py [FOLDER]: encode on a real Ray cluster of two nodes, one of which is killed.

Wants the extra `ray`. Starts both nodes on this machine, encodes synthetic videos with `flcache encode --engine ray`,
kills the second node once the first shards are committed, and compares every byte with an encode without Ray.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from flcache.videos import write_dataset

SHARDS = 12
ENCODER = {
    "model_type": "vjepa2",
    "hidden_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "crop_size": 64,
    "patch_size": 8,
    "frames_per_clip": 8,
    "pred_hidden_size": 12,
    "pred_num_attention_heads": 1,
    "pred_num_hidden_layers": 1,
}
CLIP_BYTES = 4 * 8 * 8 * 192 * 4


def main(folder: Path) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
    config = write_config(folder)
    flcache("encode", "--config", config, f"cache.dir={folder / 'local'}")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        arguments = ["encode", "--config", str(config), "--engine", "ray", "--address", cluster.address]
        run = start(*arguments, f"cache.dir={folder / 'ray'}")
        wait_for_commits(run, folder / "ray", 3)
        cluster.remove_node(second, allow_graceful=False)
        print(f"the second node was killed with {commits(folder / 'ray')} of {SHARDS} shards committed", flush=True)
        if run.wait(600):
            sys.exit(f"flcache encode --engine ray exited {run.returncode}")
    finally:
        cluster.shutdown()
    compare(folder / "local", folder / "ray")


def write_config(folder: Path) -> Path:
    write_dataset(folder / "videos", train_videos=SHARDS * 4, val_videos=1, frames=16, size=64)
    videos = folder / "videos"
    content = {
        "dataset": {"root": str(videos), "train": str(videos / "train.csv")},
        "clip": {"frames": 8, "fps": 8.0},
        "encoder": {"architecture": ENCODER},
        "encode": {"batch_size": 2, "decode_workers": 1, "device": "cpu", "ray": {"cpus": 1}},
        "cache": {"codec": "float32", "shard_bytes": 4 * CLIP_BYTES},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "flcache.pipelines.cli", *arguments])


def flcache(*arguments: object) -> None:
    if start(*map(str, arguments)).wait():
        sys.exit(f"flcache {' '.join(map(str, arguments))} failed")


def commits(cache: Path) -> int:
    return len(list((cache / "commits").glob("*.json")))


def wait_for_commits(run: subprocess.Popen[bytes], cache: Path, wanted: int) -> None:
    deadline_s = time.monotonic() + 300
    while commits(cache) < wanted:
        if run.poll() is not None or time.monotonic() > deadline_s:
            sys.exit(f"{commits(cache)} shards were committed, {wanted} were waited for")
        time.sleep(0.02)


def compare(first: Path, second: Path) -> None:
    trees = [
        {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}
        for cache in (first, second)
    ]
    different = [name for name in {**trees[0], **trees[1]} if trees[0].get(name) != trees[1].get(name)]
    if different:
        sys.exit(f"not the same bytes: {', '.join(sorted(different))}")
    print(f"{len(trees[0])} files, every byte the same with and without Ray")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
