"""The steps of a whole video, decoded by the clip rule of the training, and the windows of them that a model sees.

Shapes: T steps, F frames, s frames a step, H x W patch grid, D channels; h, w pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.batch import step_arrays, step_times, step_valid
from flcache.errors import DecodeError
from flcache.videos import ClipRequest, DecodedClip, DecodePool, VideoInfo

from .model import ExportedModel


@dataclass(frozen=True)
class Steps:
    """Consecutive steps of a video."""

    content: NDArray[Any]
    """(T, s, h, w, 3) frames, or the latents (T, H, W, D) that contexts are of."""
    targets: NDArray[Any]
    """The same frames, or the latents that targets are of."""
    seconds: NDArray[np.float64]
    """(T, s) of the frames, from the first of the video."""
    valid: NDArray[np.bool_]
    """(T,) False where the video has ended."""
    actions: NDArray[np.float32]
    """(T, A) of the `.npz` beside the video; A is 0 for a model without."""

    def __getitem__(self, steps: slice) -> Steps:
        return Steps(*(getattr(self, entry.name)[steps] for entry in fields(self)))

    def __len__(self) -> int:
        return len(self.valid)

    def then(self, later: Steps) -> Steps:
        pairs = [(getattr(self, entry.name), getattr(later, entry.name)) for entry in fields(self)]
        return Steps(*(np.concatenate(pair) for pair in pairs))

    @property
    def frames(self) -> NDArray[np.uint8]:
        """(F, h, w, 3)"""
        return self.content.reshape(-1, *self.content.shape[2:])

    @property
    def times(self) -> NDArray[np.float32]:
        """(T,) seconds from the first of these frames, as a predictor takes them."""
        return step_times(self.seconds.reshape(-1), self.seconds.shape[1])


def encoded(model: ExportedModel, steps: Steps) -> Steps:
    """Frames as latents, encoded as one clip in the context mode of the training."""
    latents, targets = model.encode(steps.frames)
    return Steps(latents, targets, steps.seconds, steps.valid, steps.actions)


def encoded_windows(model: ExportedModel, pool: DecodePool, path: Path, every: int) -> Iterator[Steps]:
    """Windows as long as the clips of the training, one every `every` steps, each encoded as such a clip: a context and
    what comes after it. The last ones end in padding. Raises DecodeError if the video cannot be read.

    Where every step is encoded alone, it is so once.
    """
    length, blocks = model.spec.latent_shape[0], decoded_steps(model, pool, path)
    if model.encoder.context.mode == "step":
        yield from sliding((encoded(model, block) for block in blocks), length, every)
    else:
        yield from (encoded(model, window) for window in sliding(blocks, length, every))


def sliding(blocks: Iterable[Steps], length: int, every: int) -> Iterator[Steps]:
    """All whole windows of `length` steps, one every `every` steps."""
    held: Steps | None = None
    for block in blocks:
        held = block if held is None else held.then(block)
        while len(held) >= length:
            yield held[:length]
            held = held[every:]


def decoded_steps(model: ExportedModel, pool: DecodePool, path: Path) -> Iterator[Steps]:
    """The video clip after clip, and after its end as much of padding. Raises DecodeError."""
    rule, rate = model.rule, sampling_rate(model, pool, path)
    requests = (request_at(model, number * rule.frames / rate, rate) for number in count())
    last: Steps | None = None
    for number, (_, clip) in enumerate(pool.decode((None, path, request) for request in requests)):
        if isinstance(clip, DecodeError):
            if number == 0 or clip.reason != "too short":
                raise clip
            break
        last = as_steps(model, clip)
        yield last
        if not last.valid.all():
            break
    if last is not None:
        still = np.repeat(last.content[-1:], len(last), axis=0)
        ended = np.zeros(len(last), dtype=np.bool_)
        yield Steps(still, still, last.seconds + rule.frames / rate, ended, np.zeros_like(last.actions))


def request_at(model: ExportedModel, start_s: float, rate: float) -> ClipRequest:
    """A clip of the training's length, padded where the video has ended."""
    timestamps = tuple(round(start_s + number / rate, 6) for number in range(model.rule.frames))
    return ClipRequest(model.rule.frames, start_s, timestamps, None, "pad")


def as_steps(model: ExportedModel, clip: DecodedClip) -> Steps:
    size = model.encoder.tubelet_size
    content = clip.frames.reshape(-1, size, *clip.frames.shape[1:])
    seconds, valid = clip.sampled(nominal=model.spec.nominal_times).reshape(-1, size), step_valid(clip.mask, size)
    none = np.zeros((len(valid), 0), dtype=np.float32)
    return Steps(content, content, seconds, valid, step_arrays(clip.arrays, size).get("actions", none))


def sampling_rate(model: ExportedModel, pool: DecodePool, path: Path) -> float:
    """Frames a second to sample at: of the rule, or what its stride is in this video."""
    if model.rule.fps is not None:
        return model.rule.fps
    (info,) = pool.probe([path])
    if not isinstance(info, VideoInfo):
        raise info
    if info.fps is None:
        raise DecodeError(f"{path}: its header has no frame rate, which clip.stride needs; convert it to MP4")
    return info.fps / (model.rule.stride or 1)
