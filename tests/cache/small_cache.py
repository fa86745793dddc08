"""Makes a small real cache: two splits, several shards, padded clips and a failure in each split; also as a program."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from flcache.cache import (
    CacheSpec,
    Calibrator,
    EncodedClip,
    Failure,
    ShardWriter,
    assign_shards,
    create_or_check,
    finalize_statistics,
    is_calibrated,
    is_committed,
    read_plan,
    remove_shard_leftovers,
    write_plan,
)
from flcache.cache.storage import Location

Place = TypeVar("Place", bound=Location)
Shape = tuple[int, int, int, int]
T, H, W, D = SHAPE = (4, 2, 2, 6)
CODECS = {"float16": np.float16, "float32": np.float32}
"""Codecs that keep the values of a numpy type; the others have tests of their own."""


def hard_spec(
    codec: str = "float16",
    shape: Shape = SHAPE,
    seen_until: list[int] | None = None,
    arrays: dict[str, int] | None = None,
) -> dict[str, Any]:
    """`arrays` are numbers a step by name."""
    kept = {"arrays": {name: [shape[0], numbers] for name, numbers in arrays.items()}} if arrays else {}
    return {
        "encoder": {"name": "tiny", "digest": "0" * 64},
        "clip": {"frames": 8, "fps": 4.0},
        "context": {"mode": "step", "seen_until": seen_until or list(range(shape[0]))},
        "layout": {"shape": list(shape), **kept},
        "codec": codec,
    }


def clip_table(num_clips: int, name: str = "video") -> pd.DataFrame:
    ids = [f"{name}{number:03d}-0" for number in range(num_clips)]
    return pd.DataFrame(
        {
            "clip_id": ids,
            "video": [f"jump/{clip_id}.mp4" for clip_id in ids],
            "video_id": [clip_id[:-2] for clip_id in ids],
            "label": ["jump" if number % 2 else None for number in range(num_clips)],
            "start_s": [0.0] * num_clips,
            "timestamps": [[0.25 * frame for frame in range(8)]] * num_clips,
        }
    )


def clip_latents(clip_id: str, shape: Shape = SHAPE) -> np.ndarray:
    """(T, H, W, D) latents that only the id decides, with one channel far from the others."""
    seed = int.from_bytes(clip_id.encode(), "little")
    latents = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    latents[..., 0] = 20 + 3 * latents[..., 0]
    return latents


def clip_arrays(clip_id: str, spec: CacheSpec) -> dict[str, np.ndarray]:
    """(T, A) by name, that only the names decide."""
    seeds = {name: int.from_bytes(f"{clip_id}/{name}".encode(), "little") for name in spec.arrays}
    return {
        name: np.random.default_rng(seed).normal(size=spec.arrays[name]).astype(np.float32)
        for name, seed in seeds.items()
    }


def calibration(hard: dict[str, Any], num_clips: int) -> dict[str, Any]:
    """Of the training clips but the one that fails."""
    calibrator = Calibrator(hard)
    for clip_id in clip_table(num_clips, "train")["clip_id"][1:]:
        calibrator.add(clip_latents(clip_id, tuple(hard["layout"]["shape"])), T)
    return calibrator.fields()


def encoded_clip(row: Any, *, shape: Shape = SHAPE, valid_steps: int = T, arrays: Any = None) -> EncodedClip:
    return EncodedClip(
        clip_id=row.clip_id,
        slot=row.slot,
        latents=clip_latents(row.clip_id, shape),
        times=[0.125 + 0.5 * step for step in range(T)],
        timestamps=row.timestamps,
        mask=[frame < 2 * valid_steps for frame in range(8)],
        valid_steps=valid_steps,
        label=row.label,
        video=row.video,
        decoder="decord",
        arrays=arrays or {},
    )


def write_shard(
    cache_dir: Location, spec: CacheSpec, split: str, shard: int, rows: pd.DataFrame, **options: Any
) -> None:
    """The clips of one shard of the plan; slot 1 of shard 0 fails, the last clip is padded from step 2 on."""
    with ShardWriter(cache_dir, split, shard, spec, **options) as writer:
        for row in rows.itertuples():
            if (shard, row.slot) == (0, 1):
                failure = Failure(row.clip_id, row.slot, row.video, "decode", "cut off", "moov atom not found", 1)
                writer.fail(failure)
            else:
                valid_steps = 2 if row.slot == len(rows) - 1 else T
                arrays = clip_arrays(row.clip_id, spec)
                writer.add(encoded_clip(row, shape=spec.latent_shape, valid_steps=valid_steps, arrays=arrays))
        writer.commit()


def plan_cache(
    cache_dir: Location,
    *,
    codec: str = "float16",
    shape: Shape = SHAPE,
    num_train: int = 23,
    num_val: int = 5,
    arrays: dict[str, int] | None = None,
) -> CacheSpec:
    """The spec and plan of a cache of five clips a shard."""
    hard = hard_spec(codec, shape, arrays=arrays)
    calibrate = partial(calibration, hard, num_train) if is_calibrated(hard) else None
    spec, _ = create_or_check(cache_dir, hard, {"device": "cpu"}, calibrate)
    clip_bytes = spec.codec.clip_bytes(shape)
    for split, number in (("train", num_train), ("val", num_val)):
        clips = clip_table(number, split)
        write_plan(cache_dir, assign_shards(clips, split, clip_bytes=clip_bytes, shard_bytes=5 * clip_bytes, seed=0))
    return spec


def fill_cache(cache_dir: Location, spec: CacheSpec) -> None:
    for (split, shard), rows in read_plan(cache_dir).groupby(["split", "shard"]):
        if not is_committed(cache_dir, split, shard):
            write_shard(cache_dir, spec, split, shard, rows)
    remove_shard_leftovers(cache_dir)
    finalize_statistics(cache_dir)


def make_cache(cache_dir: Place, **options: Any) -> Place:
    fill_cache(cache_dir, plan_cache(cache_dir, **options))
    return cache_dir
