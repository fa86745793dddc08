"""`python train_settings.py CONFIG SETTINGS.json`: a training run for each list of overrides, in one process or more.

For `test_kinds_in_two_processes.py`, which starts it under torchrun.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from flcache.config import load_config
from flcache.pipelines import train


def main(config: str, settings: Path) -> None:
    Accelerator.end_training = lambda self: None  # the group of processes outlives a run
    for overrides in json.loads(settings.read_text(encoding="utf-8")):
        train.run(load_config(config, overrides))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
