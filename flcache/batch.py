"""What a batch is: what every source yields, and every objective, predictor and metric takes.

Shapes: B clips, F frames, T steps, H x W patch grid, D channels, A numbers a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class LatentBatch:
    """Latents of B clips, standardised per channel unless the source says otherwise."""

    latents: Tensor
    """(B, T, H, W, D): what a predictor sees, up to `context_steps`."""
    targets: Tensor
    """(B, T, H, W, D): what it must predict; the same tensor as `latents` unless the encoder trains."""
    times: Tensor
    """(B, T) seconds, float32, measured from the first frame of the clip."""
    valid: Tensor
    """(B, T) bool: False where a step is made of padding only."""
    ids: tuple[str, ...]
    context_steps: int
    """Steps `< context_steps` are the context, the others the target."""
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    """(B, T, A) by name: `dataset.arrays`, never standardised. The `actions` of step t lead from it to step t + 1."""

    @property
    def context(self) -> Tensor:
        """(B, Tc, H, W, D)"""
        return self.latents[:, : self.context_steps]

    @property
    def target(self) -> Tensor:
        """(B, Tt, H, W, D)"""
        return self.targets[:, self.context_steps :]

    @property
    def context_times(self) -> Tensor:
        """(B, Tc) seconds"""
        return self.times[:, : self.context_steps]

    @property
    def target_times(self) -> Tensor:
        """(B, Tt) seconds"""
        return self.times[:, self.context_steps :]

    @property
    def target_valid(self) -> Tensor:
        """(B, Tt) bool"""
        return self.valid[:, self.context_steps :]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> LatentBatch:
        latents = send(self.latents, device)
        targets = latents if self.targets is self.latents else send(self.targets, device)
        times, valid = send(self.times, device), send(self.valid, device)
        arrays = {name: send(array, device) for name, array in self.arrays.items()}
        return replace(self, latents=latents, targets=targets, times=times, valid=valid, arrays=arrays)


@dataclass(frozen=True)
class VideoBatch:
    """Decoded frames of B clips, before any encoder."""

    frames: tuple[Tensor, ...]
    """B tensors (F, h, w, 3), uint8; videos differ in size."""
    times: Tensor
    """(B, T) seconds of the encoder's steps, as in `LatentBatch`."""
    valid: Tensor
    """(B, T) bool."""
    ids: tuple[str, ...]
    context_steps: int
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    """(B, T, A) by name, as in `LatentBatch`."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> VideoBatch:
        frames = tuple(send(clip, device) for clip in self.frames)
        times, valid = send(self.times, device), send(self.valid, device)
        arrays = {name: send(array, device) for name, array in self.arrays.items()}
        return replace(self, frames=frames, times=times, valid=valid, arrays=arrays)


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation per latent channel over a split, from valid steps only; both (D,) float32."""

    mean: Tensor
    std: Tensor

    def standardise(self, latents: Tensor) -> Tensor:
        """(..., D) latents to zero mean and unit deviation per channel, float32."""
        return (latents.float() - self.mean.to(latents.device)) / self.std.to(latents.device)

    def restore(self, standardised: Tensor) -> Tensor:
        """The inverse of `standardise`, float32."""
        return standardised.float() * self.std.to(standardised.device) + self.mean.to(standardised.device)


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`. Only a copy from pinned memory to CUDA is asynchronous: from other memory, an asynchronous
    copy could read what is written there later."""
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda" and tensor.is_pinned())


def upload(values: Sequence[float], device: torch.device) -> Tensor:
    """`values` as a tensor on `device`, without waiting for what a GPU still has to do."""
    tensor = torch.tensor(values)
    return send(tensor.pin_memory() if device.type == "cuda" and torch.cuda.is_available() else tensor, device)


def step_times(timestamps: NDArray[np.float64], tubelet_size: int) -> NDArray[np.float32]:
    """Seconds of each step, (T,): the mean over its frames of `timestamps` (F,), measured from the clip's first."""
    relative = (timestamps - timestamps[0]).reshape(-1, tubelet_size)
    seconds: NDArray[np.float32] = relative.mean(axis=1).astype(np.float32)
    return seconds


def step_valid(mask: NDArray[np.bool_], tubelet_size: int) -> NDArray[np.bool_]:
    """Which steps hold at least one real frame, from the frames' padding `mask` (F,), True where real; (T,)."""
    valid: NDArray[np.bool_] = np.asarray(mask.reshape(-1, tubelet_size).any(axis=1))
    return valid


def step_arrays(arrays: Mapping[str, NDArray[np.float32]], tubelet_size: int) -> dict[str, NDArray[np.float32]]:
    """Each of the `arrays` (F, A) by steps, (T, tubelet_size * A): the rows of the frames of a step, one after the
    other."""
    return {name: rows.reshape(-1, tubelet_size * rows.shape[1]) for name, rows in arrays.items()}
