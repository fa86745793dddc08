"""The stages of encoding: planned clips -> decoded -> encoded -> stored or calibrated with, each with its failure if it
has one. T steps, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flcache.batch import step_times, step_valid
from flcache.cache import Calibrator, EncodedClip, Failure, RetryWriter, ShardWriter, ValueRangeError, stage_of
from flcache.encoder import LatentVideoModel
from flcache.engines.job import ClipDone, ClipFailed, EncodeJob, Event, ShardCommitted, ShardTask
from flcache.errors import DecodeError
from flcache.videos import DecodedClip, PlannedClip

Decoded = tuple[PlannedClip, DecodedClip | DecodeError]


def run_task(
    job: EncodeJob,
    task: ShardTask,
    model: LatentVideoModel,
    decode: Callable[[Sequence[PlannedClip]], Iterable[Decoded]],
    on_event: Callable[[Event], None],
) -> None:
    """Encode and commit one shard, unless another run has. Failed clips are recorded and left out.

    Raises ShardBusy where another run is writing it, CacheError where writing fails.
    """
    kind = RetryWriter if task.retry else ShardWriter
    with kind(job.cache, task.split, task.shard, job.spec, min_cosine=job.min_cosine, wait=False) as writer:
        if commit := writer.committed:
            on_event(ShardCommitted(commit, by_another=True))
            return
        nominal = job.spec.nominal_times
        for clip in encode_clips(model, decode(task.clips), job.batch_size, nominal_times=nominal):
            on_event(_store(writer, clip))
        on_event(ShardCommitted(writer.commit()))


def calibrate(
    hard: Mapping[str, Any],
    decoded: Iterable[Decoded],
    model: LatentVideoModel,
    *,
    batch_size: int,
    on_clip: Callable[[bool], None],
) -> dict[str, Any]:
    """The `calibration` of a spec whose other hard fields are `hard`, from the clips that could be decoded.

    `on_clip` is called once a clip, with whether it failed. Raises CacheError if all of them did.
    """
    calibrator = Calibrator(hard)
    for clip in encode_clips(model, decoded, batch_size):
        if isinstance(clip, EncodedClip):
            calibrator.add(clip.latents, clip.valid_steps)
        on_clip(not isinstance(clip, EncodedClip))
    return calibrator.fields()


def encode_clips(
    model: LatentVideoModel, decoded: Iterable[Decoded], batch_size: int, *, nominal_times: bool = True
) -> Iterator[EncodedClip | Failure]:
    """Every clip with its latents, or its failure, in the order of `decoded`.

    Batches are fixed by the order of clips: a failed clip shrinks its own batch only, so all other batches are
    bit-identical.
    """
    waiting = iter(decoded)
    while batch := list(islice(waiting, batch_size)):
        good = [(clip, frames) for clip, frames in batch if isinstance(frames, DecodedClip)]
        latents = dict(zip((clip.clip_id for clip, _ in good), _forward(model, good), strict=True))
        for clip, found in batch:
            if isinstance(found, DecodedClip):
                yield _encoded(clip, found, latents[clip.clip_id], nominal_times)
            else:
                stage = "find" if found.reason == "no file" else "decode"
                yield Failure(clip.clip_id, clip.slot, clip.video, stage, found.reason, str(found), found.attempts)


def _forward(model: LatentVideoModel, clips: list[tuple[PlannedClip, DecodedClip]]) -> list[NDArray[np.float32]]:
    """Latents (T, H, W, D) of each clip, from one forward pass."""
    if not clips:
        return []
    with torch.inference_mode():
        latents = model([torch.from_numpy(decoded.frames) for _, decoded in clips])  # (B, T, H, W, D)
    return list(latents.cpu().numpy())


def _encoded(clip: PlannedClip, decoded: DecodedClip, latents: NDArray[np.float32], nominal_times: bool) -> EncodedClip:
    tubelet_size = len(decoded.mask) // len(latents)
    return EncodedClip(
        clip_id=clip.clip_id,
        slot=clip.slot,
        latents=latents,
        times=step_times(decoded.sampled(nominal=nominal_times), tubelet_size).tolist(),
        timestamps=decoded.timestamps.tolist(),
        mask=decoded.mask.tolist(),
        valid_steps=int(step_valid(decoded.mask, tubelet_size).sum()),
        label=clip.label,
        video=clip.video,
        decoder=decoded.decoder,
    )


def _store(writer: ShardWriter | RetryWriter, clip: EncodedClip | Failure) -> ClipDone | ClipFailed:
    """Write a clip, or record its failure."""
    if isinstance(clip, EncodedClip):
        try:
            writer.add(clip)
            return ClipDone(clip.clip_id)
        except ValueRangeError as error:
            stage = stage_of(error.reason)
            clip = Failure(clip.clip_id, clip.slot, clip.video, stage, error.reason, str(error), 1)
    writer.fail(clip)
    return ClipFailed(clip)
