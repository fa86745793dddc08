"""Where shard tasks run: in this process, in several of this machine, or on a Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from flcache.config import Config
from flcache.encoder import LatentVideoModel
from flcache.engines import EncodeJob, EncoderTimes, Event, ShardTask, local, processes
from flcache.engines.cores import available_cores
from flcache.errors import ConfigError

from .encoder import pick_device

_CPU_WORKERS = 2
"""Decoding processes beside an encoder on a CPU, which needs the cores itself."""


@dataclass(frozen=True)
class Engine:
    """Which engine, and its cluster."""

    name: Literal["local", "ray"] = "local"
    address: str | None = None
    """Of a Ray cluster."""

    def is_in_process(self, config: Config) -> bool:
        """Whether the encoder works in this process."""
        return self.name == "local" and len(encode_devices(config)) == 1

    def run(
        self,
        config: Config,
        job: EncodeJob,
        tasks: Iterable[ShardTask],
        on_event: Callable[[Event], None],
        load_model: Callable[[], LatentVideoModel],
    ) -> EncoderTimes:
        """Encode and commit all `tasks`. `load_model` is called if they run in this process."""
        if self.name == "ray":
            from flcache.engines import ray

            return ray.run(
                job, tasks, on_event, options=config.encode.ray, address=self.address, on_notice=_print_notice
            )
        devices = encode_devices(config)
        if len(devices) == 1:
            return local.run(job, tasks, on_event, load_model=load_model)
        return processes.run(job, tasks, on_event, devices=devices)


LOCAL = Engine()


def _print_notice(notice: str) -> None:
    print(f"Notice: {notice}", file=sys.stderr)


def encode_devices(config: Config) -> list[str]:
    """The device of each encoder process of this machine. Raises ConfigError if it has fewer GPUs."""
    device, wanted = pick_device(config.encode.device), config.encode.devices
    if device != "cuda":
        return [device] * (1 if wanted == "auto" else wanted)
    gpus = torch.cuda.device_count()
    count = gpus if wanted == "auto" else wanted
    if count > gpus:
        raise ConfigError(f"encode.devices={count}: this machine has {gpus} CUDA devices; ask for as many, or auto")
    return ["cuda"] if count == 1 else [f"cuda:{number}" for number in range(count)]


def decode_workers(config: Config) -> int:
    """Processes that decode, shared by all encoders of this machine: with `auto` one for each core, beside encoders on
    a CPU two for each."""
    wanted = config.encode.decode_workers
    if wanted != "auto":
        return wanted
    devices = encode_devices(config)
    return len(devices) * _CPU_WORKERS if devices[0] == "cpu" else max(available_cores(), len(devices))
