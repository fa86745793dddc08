"""flcache bench encode [--config C] [KEY=VALUE ...] [--stand-in R] [--clips N] [--json]: how fast this machine encodes.

Each stage alone, the limit that follows, and what all of them reach together. Without a configuration the videos are
made here; a stand-in for the encoder only waits, as a CPU does for a GPU.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flcache.cache import CacheSpec, Calibrator, EncodedClip, ShardWriter, is_calibrated, make_spec
from flcache.config import Config
from flcache.engines import ClipDone, EncoderTimes, Event, ShardTask, local
from flcache.engines.cores import available_cores
from flcache.engines.lane import open_lane
from flcache.errors import ConfigError, DataError
from flcache.videos import DecodedClip, DecodePool, PlannedClip, VideoFolder, decode_planned, planned_clips

from ..setup.clips import open_pool, read_split
from ..setup.encoder import encode_batch_size, hard_spec, load_configured_encoder
from ..setup.encoding import encode_job
from ..setup.engine import decode_workers
from .videos import write_videos

STAND_IN_SHAPE = (8, 16, 16, 1024)
"""4 MiB in float16: what V-JEPA 2 ViT-L gives for 16 frames of 256 pixels."""
_WARM_UP = 8
_STORED = 48
"""Clips that a stage is measured on alone, after it has warmed up."""


@dataclass(frozen=True)
class Measured:
    """What `--json` prints."""

    decode_s: float
    """CPU seconds a clip, with what it costs to receive it; so are those of storing."""
    encode_s: float
    """Seconds that the encoder takes for a clip."""
    store_s: float
    limit_clips_per_s: float
    """What the encoder allows, or the cores: fewer of the two."""
    clips_per_s: float
    """From the first clip stored to the last."""
    busy: float
    """Share of that time in which the encoder was encoding."""
    held_back_by: str
    """`decode`, `encode` or `store`."""


class StandIn(torch.nn.Module):
    """Waits for as long as an encoder of `clips_per_s` takes; at 0 it costs nothing. Its latents never change."""

    device = torch.device("cpu")

    def __init__(self, clips_per_s: float) -> None:
        super().__init__()
        self._clip_s = 1 / clips_per_s if clips_per_s else 0.0
        noise = np.random.default_rng(0).standard_normal(STAND_IN_SHAPE, dtype=np.float32)
        self._latents = torch.from_numpy(noise)

    def forward(self, clips: Sequence[Tensor]) -> Tensor:
        time.sleep(len(clips) * self._clip_s)
        return self._latents.expand(len(clips), *self._latents.shape)

    @staticmethod
    def hard_fields(codec: str) -> dict[str, Any]:
        """Of the spec of a cache with its latents."""
        steps = STAND_IN_SHAPE[0]
        layout, context = {"shape": list(STAND_IN_SHAPE)}, {"mode": "step", "seen_until": list(range(steps))}
        return {"encoder": "stand-in", "layout": layout, "context": context, "codec": codec}


def run(config: Config, *, own_videos: bool, stand_in: float | None, as_json: bool, clips: int) -> Measured:
    """Measure with `clips` clips of the training split, or of videos made here with `own_videos`.

    `stand_in` takes the place of the encoder: its clips per second, 0 for one that costs nothing.
    """
    config = replace(config, dataset=replace(config.dataset, arrays=()))  # small beside latents
    with tempfile.TemporaryDirectory(prefix="flcache-bench-", dir=".") as folder:
        if own_videos:
            config = write_videos(config, Path(folder) / "videos")
        bench = _Bench(config, Path(folder), stand_in, clips)
        measured = bench.measure()
    print(json.dumps(asdict(measured)) if as_json else "\n".join(_lines(measured, bench)))
    return measured


class _Bench:
    def __init__(self, config: Config, folder: Path, stand_in: float | None, clips: int) -> None:
        self.workers, self._folder = decode_workers(config), folder
        if stand_in is None:
            self._model: Any = load_configured_encoder(config, device=config.encode.device)
            hard = hard_spec(config, self._model, {})
        else:
            self._model, hard = StandIn(stand_in), StandIn.hard_fields(config.cache.codec)
        self._videos, self._clips = _clips_of(config, clips)
        with open_pool(config) as pool:
            self._decoded = [clip for _, clip in self._decode(pool, _WARM_UP) if isinstance(clip, DecodedClip)]
            if not self._decoded:
                raise DataError(f"{config.dataset.root}: none of the first {_WARM_UP} clips can be decoded")
            self._decode_s = self._cpu_s_of_decoding(pool)
        self._config, self._spec = config, self._spec_of(hard)

    def measure(self) -> Measured:
        encode_s, encode_cpu_s, latents = self._encoding()
        store_s = self._cpu_s_of_storing(latents)
        clips_per_s, times = self._together()
        cpu_s = self._decode_s + store_s + encode_cpu_s
        limits = [available_cores() / cpu_s, *([1 / encode_s] if encode_s > 1e-6 else [])]
        return Measured(
            decode_s=self._decode_s,
            encode_s=encode_s,
            store_s=store_s,
            limit_clips_per_s=min(limits),
            clips_per_s=clips_per_s,
            busy=times.busy,
            held_back_by=times.held_back_by or "encode",
        )

    def _decode(self, pool: DecodePool, count: int) -> Iterator[tuple[PlannedClip, Any]]:
        return decode_planned(pool, self._videos, self._clips[:count])

    def _cpu_s_of_decoding(self, pool: DecodePool) -> float:
        before_s = _cpu_s(pool.worker_pids)
        done = sum(1 for _ in self._decode(pool, len(self._clips)))
        return (_cpu_s(pool.worker_pids) - before_s) / done

    def _encoding(self) -> tuple[float, float, Any]:
        """Seconds and CPU seconds of a clip, and the latents of one."""
        lane, batch = open_lane(self._model, self._spec), encode_batch_size(self._config, self._spec.encoder_shape)
        frames = [lane.stage(clip.frames) for clip in islice(cycle(self._decoded), batch)]
        lane.encode(frames).wait()  # warms up
        cpu_s = time.process_time()
        encodings = [lane.encode(frames) for _ in range(3)]
        seconds = min(encoding.wait() for encoding in encodings)
        cpu_s = (time.process_time() - cpu_s) / 3
        return seconds / batch, cpu_s / batch, encodings[-1].latents(0, "bench", self._spec.latent_shape[0])

    def _cpu_s_of_storing(self, latents: Any) -> float:
        """In a thread of its own, as when all stages work."""
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
            return thread.submit(self._store, latents).result()

    def _store(self, latents: Any) -> float:
        steps = self._spec.latent_shape[0]
        with ShardWriter(self._folder / "stored", "train", 0, self._spec) as writer:
            for number in range(_WARM_UP + _STORED):
                if number == _WARM_UP:
                    began_s = time.process_time()
                name = f"clip-{number}"
                times, frames = list(map(float, range(steps))), self._decoded[0]
                stamps, mask = frames.timestamps.tolist(), frames.mask.tolist()
                writer.add(EncodedClip(name, number, latents, times, stamps, mask, steps, None, name, "decord"))
            writer.commit()
            return (time.process_time() - began_s) / _STORED

    def _together(self) -> tuple[float, EncoderTimes]:
        """Clips per second of all stages, and the times of the encoder."""
        per_shard = max(1, self._config.cache.shard_bytes // self._spec.codec.clip_bytes(self._spec.latent_shape))
        numbers = range(0, len(self._clips), per_shard)
        shards = [[*enumerate(self._clips[start : start + per_shard])] for start in numbers]
        tasks = [
            ShardTask("train", number, tuple(replace(clip, slot=slot) for slot, clip in clips))
            for number, clips in enumerate(shards)
        ]
        stored_at: list[float] = []

        def note(event: Event) -> None:
            if isinstance(event, ClipDone):
                stored_at.append(time.perf_counter())

        job = encode_job(self._folder / "cache", self._config, self._spec)
        times = local.run(job, tasks, note, load_model=lambda: self._model)
        if len(stored_at) < 2:
            raise DataError(f"{self._config.dataset.root}: too few of the {len(self._clips)} clips can be decoded")
        return (len(stored_at) - 1) / (stored_at[-1] - stored_at[0]), times

    def _spec_of(self, hard: dict[str, Any]) -> CacheSpec:
        if is_calibrated(hard):
            calibrator = Calibrator(hard)
            with torch.inference_mode():
                frames = [torch.from_numpy(clip.frames) for clip in self._decoded]
                for latents in self._model(frames).cpu().numpy():
                    calibrator.add(latents, len(latents))
            hard = {**hard, "calibration": calibrator.fields()}
        return make_spec(hard)


def _clips_of(config: Config, count: int) -> tuple[VideoFolder, list[PlannedClip]]:
    """The first `count` training clips, again from the start if there are fewer, and the folder of their videos."""
    split = read_split(config, "train")
    found = planned_clips(split.clips[:count])
    if not found:
        raise ConfigError(f"{config.dataset.train}: no clip to measure with")
    return split.folder, [
        replace(clip, clip_id=f"{clip.clip_id}-{number}", file=split.folder.find(clip.video))
        for number, clip in enumerate(islice(cycle(found), count))
    ]


def _cpu_s(workers: Sequence[int]) -> float:
    """CPU seconds so far of this process, its ended children, and these that live."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    living = [_clock_ticks(pid) / os.sysconf("SC_CLK_TCK") for pid in workers]
    return sum(usage.ru_utime + usage.ru_stime for usage in own) + sum(living)


def _clock_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # not Linux: counted when the worker ends
        return 0
    return int(fields[11]) + int(fields[12])


def _lines(measured: Measured, bench: _Bench) -> list[str]:
    limit, reached = measured.limit_clips_per_s, measured.clips_per_s
    times = {"decode": measured.decode_s, "encode": measured.encode_s, "store": measured.store_s}
    return [
        *(f"{stage}: {1000 * seconds:.1f} ms a clip, alone" for stage, seconds in times.items()),
        f"limit on {available_cores()} cores: {limit:.1f} clips/s",
        f"reached with {bench.workers} decoding processes: {reached:.1f} clips/s, encoder busy {measured.busy:.2f}, "
        f"held back by: {measured.held_back_by}",
    ]
