"""What encoding and training cost, found by doing both on a few videos, everything kept in one folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from flcache.cache import LatentCache
from flcache.config import Config, to_yaml
from flcache.errors import ConfigError, DataError
from flcache.training import Augmentation, read_metrics
from flcache.videos import VideoFolder, list_videos

from .cache import cache_store
from .clips import disk_cache, list_of, video_root
from .encoder import encode_batch_size
from .encoding import encode_missing
from .engine import encode_devices
from .planning import begin_planning

VIDEOS, STEPS = 24, 6
"""What rates are measured on; more videos where a batch needs them."""
WARM_UP = 2
"""Steps before, that are not measured."""
_CLIP = (8, 16, 16, 1024)
"""How many videos are taken follows from latents of this shape: the encoder is not loaded yet."""
_MAIN = "from flcache.pipelines.cli import main; main()"
_RSS_BYTES = 1 if sys.platform == "darwin" else 1024
"""Of a unit of `ru_maxrss`."""


@dataclass(frozen=True)
class Measured:
    """Training from one source."""

    steps_per_s: float
    clips_per_s: float
    data_wait_fraction: float
    """Part of the time in which training waited for clips."""
    peak_mb: float
    """Largest resident memory of the training process, that of a GPU and of decoding processes not counted."""


def measure_rates(config: Config) -> dict[str, float]:
    """Clips a second of `encode`, and of training from each source, on the first training videos that are there.

    A source that cannot be trained from here is left out, with a notice.
    """
    videos = max(VIDEOS, 3 * encode_batch_size(config, _CLIP), config.training.batch_size)
    with tempfile.TemporaryDirectory(prefix="flcache-measure-", dir=".") as name:
        folder = Path(name).resolve()
        few = on_few_videos(config, folder, videos, WARM_UP + STEPS)
        rates = {"encode": time_encoding(few)}
        batch_size = min(few.training.batch_size, len(LatentCache(cache_store(few), "train")))
        few = replace(few, training=replace(few.training, batch_size=batch_size))
        for source, on_source in sources(few):
            try:
                rates[source] = time_training(on_source, folder / source).clips_per_s
            except DataError as error:
                print(f"Notice: {error}", file=sys.stderr)
    return rates


def on_few_videos(config: Config, folder: Path, count: int, steps: int) -> Config:
    """`config` on the first `count` training videos that are there, with what it writes in `folder`."""
    dataset, root = config.dataset, video_root(config)
    listed = list_videos(list_of(config, "train"), dataset, "train", disk_cache(config))
    there = VideoFolder(root, (video.path for video in listed))
    paths = [path for video in listed if (path := there.find(video.path))][:count]
    if not paths:
        raise ConfigError(f"{dataset.train}: no video to measure with")
    lines = [f"{os.path.relpath(str(path), str(root))} {number}\n" for number, path in enumerate(paths)]
    (folder / "train.csv").write_text("".join(lines), encoding="utf-8")
    root = root.resolve() if isinstance(root, Path) else root
    dataset = replace(dataset, root=str(root), train=str(folder / "train.csv"), val=None, val_fraction=0.0, labels=None)
    training = replace(config.training, steps=steps, log_every=1, checkpoint_every=steps, validate_every=None)
    training = replace(training, augment=Augmentation())
    cache = replace(config.cache, dir=str(folder / "latents"))
    return replace(config, dataset=dataset, cache=cache, training=training)


def time_encoding(config: Config) -> float:
    """Encode all videos of `config` into its cache, and return clips a second, from the first batch decoded on.

    Raises DataError where no clip can be encoded.
    """
    cache = cache_store(config)
    times = encode_missing(cache, config, begin_planning(cache, config))
    if not times.clips:
        raise DataError(f"{config.dataset.root}: none of the clips to measure with could be encoded")
    return len(encode_devices(config)) * times.clips / times.span_s


def sources(config: Config) -> Iterator[tuple[str, Config]]:
    """Names and configurations of the three ways to train."""
    live = replace(config, training=replace(config.training, source="videos"))
    yield "cache", replace(config, encoder_trainable=False, training=replace(config.training, source="cache"))
    yield "frozen", replace(live, encoder_trainable=False)
    yield "unfrozen", replace(live, encoder_trainable=config.encoder_trainable or True)


def time_training(config: Config, folder: Path) -> Measured:
    """`flcache train` with `config` in a process of its own, everything kept in `folder`. Raises DataError."""
    folder.mkdir()
    config = replace(config, training=replace(config.training, dir=str(folder / "training")))
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    peak_bytes = _peak_bytes([sys.executable, "-c", _MAIN, "train", "--config", str(folder / "config.yaml")], folder)
    lines = read_metrics(folder / "training" / "metrics.jsonl")[WARM_UP:]
    seconds = [1 / line["clips_per_s"] for line in lines]  # a clip
    waits = [line["data_wait_fraction"] * clip_s for line, clip_s in zip(lines, seconds, strict=True)]
    clips_per_s = 1 / fmean(seconds)
    return Measured(
        steps_per_s=clips_per_s / (config.training.batch_size * config.training.accumulate),
        clips_per_s=clips_per_s,
        data_wait_fraction=sum(waits) / sum(seconds),
        peak_mb=peak_bytes / 1e6,
    )


def _peak_bytes(command: list[str], folder: Path) -> int:
    """Run `command` and return its largest resident memory. Raises DataError with its last words if it fails."""
    errors = folder / "stderr.txt"
    with errors.open("w", encoding="utf-8") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # ended by a signal; on SIGTERM the training would first write a checkpoint
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        reason = (errors.read_text(encoding="utf-8").strip().splitlines() or ["no message"])[-1]
        raise DataError(f"training from {folder.name} failed: {reason.removeprefix('Error: ')}")
    return usage.ru_maxrss * _RSS_BYTES
