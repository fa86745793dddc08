"""One shard: its clips decoded, encoded and written, and then committed. The unit of work, of retry and of commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flcache.batch import step_times, step_valid
from flcache.cache import CacheSpec, Commit, EncodedClip, Failure, ShardWriter, ValueRangeError
from flcache.encoder import LatentVideoModel
from flcache.errors import FlcacheError
from flcache.videos import ClipRequest, DecodedClip, DecodePool

Decoded = DecodedClip | FlcacheError | None
"""A clip, or why it could not be decoded; None where its video is missing."""
OnClip = Callable[[Failure | None], None]
"""Called once a clip, with its failure if it has one."""


@dataclass(frozen=True)
class ClipTask:
    """One row of the plan, and where its video is."""

    slot: int
    clip_id: str
    video: str
    label: str | None
    path: Path | None
    """None where the video is missing."""
    expected: Path
    """Where a missing video was looked for."""
    request: ClipRequest


Window = list[tuple[ClipTask, Decoded]]


@dataclass(frozen=True)
class ShardTask:
    """One shard of the plan, its clips in slot order."""

    split: str
    shard: int
    clips: tuple[ClipTask, ...]


class ShardEncoder:
    """Runs shard tasks into the cache at `cache_dir`.

    A forward pass takes the clips of `batch_size` neighbouring slots. A clip that fails leaves its place empty and the
    other passes as they are, so that every latent keeps its bytes whatever happens to its neighbours elsewhere.
    """

    def __init__(
        self,
        cache_dir: Path,
        spec: CacheSpec,
        model: LatentVideoModel,
        pool: DecodePool,
        *,
        batch_size: int,
        min_cosine: float | None = None,
    ) -> None:
        """`min_cosine` is how close every stored latent vector must be to the model's."""
        self.cache_dir = cache_dir
        self.spec = spec
        self.model = model
        self.pool = pool
        self.batch_size = batch_size
        self.min_cosine = min_cosine

    def run(self, task: ShardTask, on_clip: OnClip) -> Commit:
        """Encode and commit `task`. Bad clips are recorded and left out; raises CacheError where writing fails."""
        with ShardWriter(self.cache_dir, task.split, task.shard, self.spec, min_cosine=self.min_cosine) as writer:
            for window in decoded_windows(self.pool, task.clips, self.batch_size):
                latents = encode_window(self.model, window)
                for clip, decoded in window:
                    failure = self._store(writer, clip, decoded, latents)
                    if failure:
                        writer.fail(failure)
                    on_clip(failure)
            return writer.commit()

    def _store(
        self,
        writer: ShardWriter,
        clip: ClipTask,
        decoded: Decoded,
        latents: Iterator[NDArray[np.float32]],
    ) -> Failure | None:
        """Write a clip, or say why not."""
        if decoded is None:
            return _failure(clip, "find", "MissingVideoError", f"no file {clip.expected}", 1)
        if not isinstance(decoded, DecodedClip):
            attempts = getattr(decoded, "attempts", 1)
            return _failure(clip, "decode", type(decoded).__name__, str(decoded), attempts)
        try:
            writer.add(_encoded(clip, decoded, next(latents), self.model.tubelet_size))
        except ValueRangeError as error:
            return _failure(clip, "encode", type(error).__name__, str(error), 1)
        return None


def _encoded(clip: ClipTask, decoded: DecodedClip, latents: NDArray[np.float32], tubelet_size: int) -> EncodedClip:
    return EncodedClip(
        clip_id=clip.clip_id,
        slot=clip.slot,
        latents=latents,
        times=step_times(decoded.timestamps, tubelet_size).tolist(),
        timestamps=decoded.timestamps.tolist(),
        mask=decoded.mask.tolist(),
        valid_steps=int(step_valid(decoded.mask, tubelet_size).sum()),
        label=clip.label,
        video=clip.video,
        decoder=decoded.decoder,
    )


def _failure(clip: ClipTask, stage: str, error: str, message: str, attempts: int) -> Failure:
    return Failure(clip.clip_id, clip.slot, clip.video, stage, error, message, attempts)


def decoded_windows(pool: DecodePool, clips: Sequence[ClipTask], size: int) -> Iterator[Window]:
    """All clips in order, `size` at a time."""
    decoded = _decode(pool, clips)
    while window := list(islice(decoded, size)):
        yield window


def encode_window(model: LatentVideoModel, window: Window) -> Iterator[NDArray[np.float32]]:
    """Latents (T, H, W, D) of each clip that could be decoded, from one forward pass."""
    clips = [clip for _, clip in window if isinstance(clip, DecodedClip)]
    if not clips:
        return iter(())
    with torch.inference_mode():
        latents = model([torch.from_numpy(clip.frames) for clip in clips])  # (B, T, H, W, D)
    return iter(latents.cpu().numpy())


def _decode(pool: DecodePool, clips: Sequence[ClipTask]) -> Iterator[tuple[ClipTask, Decoded]]:
    decoding = pool.decode((clip, clip.path, clip.request) for clip in clips if clip.path is not None)
    for clip in clips:
        if clip.path is None:
            yield clip, None
        else:
            yield next(decoding)
