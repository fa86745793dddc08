"""A small configuration of real stages, and the command line in a process of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from forked import command_line, run_forked
from trees import tree

ENCODER = {
    "model_type": "vjepa2",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "crop_size": 32,
    "patch_size": 8,
    "frames_per_clip": 8,
    "pred_hidden_size": 12,
    "pred_num_attention_heads": 1,
    "pred_num_hidden_layers": 1,
}


def small_config(videos: Path, folder: Path) -> dict[str, Any]:
    """Encode `videos` and train on them, everything kept in `folder`."""
    return {
        "dataset": {"root": str(videos), "train": str(videos / "train.csv"), "val": str(videos / "val.csv")},
        "clip": {"frames": 8, "fps": 8.0},
        "encoder": {"architecture": ENCODER},
        "encode": {"batch_size": 4, "decode_workers": 1, "device": "cpu"},
        "cache": {"dir": str(folder / "cache"), "codec": "float32", "shard_bytes": 40_000},
        "predictor": {
            "preset": "tiny",
            "overrides": {"depth": 2, "width": 32, "heads": 2, "mlp_width": 64, "merge": 1},
        },
        "training": {
            "dir": str(folder / "training"),
            "steps": 6,
            "batch_size": 4,
            "warmup_steps": 2,
            "checkpoint_every": 3,
            "log_every": 1,
            "device": "cpu",
        },
    }


def flcache(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_forked(command_line, *arguments)


def shards_of(cache_dir: Path) -> dict[str, bytes]:
    """Every file of the shards of a cache; temporary ones too."""
    return {name: content for name, content in tree(cache_dir).items() if "/" in name}
