"""The encoder on its device: frames go there, latents come back, and nothing waits for what it need not.

On CUDA three streams overlap: frames up from page-locked memory, the encoder, latents down to page-locked memory. They
are cast and measured there, so that half the bytes come back. On a CPU all of it is one call. B clips of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flcache.cache import CacheSpec, PreparedClip
from flcache.cache.write.on_device import CastLatents, can_cast, cast_on_device, prepared_clip
from flcache.cache.write.prepared import naming
from flcache.encoder import LatentVideoModel

Latents = NDArray[np.float32] | PreparedClip


class Encoding(Protocol):
    """A batch that is being encoded."""

    def wait(self) -> float:
        """Wait until it is done; the seconds that the encoder took."""

    def latents(self, number: int, clip_id: str, valid_steps: int) -> Latents:
        """Of clip `number` of the batch, (T, H, W, D) or prepared; ValueRangeError if they cannot be prepared."""


class Lane(Protocol):
    """An encoder on one device."""

    def stage(self, frames: NDArray[np.uint8]) -> Tensor:
        """Frames (F, h, w, 3) where the device can fetch them; may be called in another thread."""

    def encode(self, clips: Sequence[Tensor]) -> Encoding:
        """Begin to encode B clips that were staged."""


def open_lane(model: LatentVideoModel, spec: CacheSpec) -> Lane:
    return CudaLane(model, spec) if model.device.type == "cuda" else CpuLane(model)


@dataclass(frozen=True)
class Encoded:
    """A batch that is done, on the CPU."""

    values: NDArray[np.float32]
    seconds: float

    def wait(self) -> float:
        return self.seconds

    def latents(self, number: int, clip_id: str, valid_steps: int) -> Latents:
        found: NDArray[np.float32] = self.values[number]
        return found


class CpuLane:
    """Also for devices without streams of their own, such as MPS."""

    def __init__(self, model: LatentVideoModel) -> None:
        self._model = model

    def stage(self, frames: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(frames)

    def encode(self, clips: Sequence[Tensor]) -> Encoded:
        began_s = time.perf_counter()
        with torch.inference_mode():
            values = self._model(list(clips)).cpu().numpy()  # (B, T, H, W, D)
        return Encoded(values, time.perf_counter() - began_s)


@dataclass(frozen=True)
class CudaEncoding:
    """A batch on its way back, in page-locked memory once `done` has happened."""

    spec: CacheSpec
    values: Tensor
    """(B, T, H, W, D) float32, on the device."""
    back: CastLatents | Tensor
    began: Any
    ended: Any
    done: Any

    def wait(self) -> float:
        self.done.synchronize()
        return float(self.began.elapsed_time(self.ended)) / 1000

    def latents(self, number: int, clip_id: str, valid_steps: int) -> Latents:
        if isinstance(self.back, CastLatents):
            with naming(clip_id):
                return prepared_clip(self.spec, self.back, self.values, number, valid_steps)
        found: NDArray[np.float32] = self.back[number].numpy()
        return found


class CudaLane:
    def __init__(self, model: LatentVideoModel, spec: CacheSpec) -> None:
        self._model, self._spec, self._device = model, spec, model.device
        stream: Any = torch.cuda.Stream
        self._up, self._down = stream(self._device), stream(self._device)

    def stage(self, frames: NDArray[np.uint8]) -> Tensor:
        return _page_locked(torch.from_numpy(frames))

    def encode(self, clips: Sequence[Tensor]) -> CudaEncoding:
        event: Any = torch.cuda.Event
        began, ended, done = (event(enable_timing=True) for _ in range(3))
        main = torch.cuda.current_stream(self._device)
        with torch.inference_mode():
            there = self._fetch(clips, main)
            began.record(main)
            values = self._model(there)
            ended.record(main)
            given = cast_on_device(self._spec, values) if can_cast(self._spec) else values
            back = self._bring_back(given, main)
        done.record(self._down)
        return CudaEncoding(self._spec, values, back, began, ended, done)

    def _fetch(self, clips: Sequence[Tensor], main: Any) -> list[Tensor]:
        """The clips on the device, copied while an earlier batch is encoded."""
        with torch.cuda.stream(self._up):
            there = [clip.to(self._device, non_blocking=True) for clip in clips]
        main.wait_stream(self._up)
        for clip in there:
            clip.record_stream(main)
        return there

    def _bring_back(self, given: CastLatents | Tensor, main: Any) -> CastLatents | Tensor:
        self._down.wait_stream(main)
        with torch.cuda.stream(self._down):
            if isinstance(given, Tensor):
                return self._copy(given)
            return CastLatents(*map(self._copy, given.tensors()))

    def _copy(self, values: Tensor) -> Tensor:
        values.record_stream(self._down)
        return _page_locked(values)


def _page_locked(values: Tensor) -> Tensor:
    """A copy on the CPU that a device can reach without waiting; from a device it has arrived when its stream has."""
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
