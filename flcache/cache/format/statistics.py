"""Mean and RMS of every latent channel, gathered while encoding and merged in shard order.

Sums are float64 over the valid steps of the latents as they are stored: the same shards give the same statistics,
whichever processes wrote them and in whatever order.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flcache.cache.codecs.reduction import LARGEST
from flcache.cache.format.commit import Commit, check_size, damaged, read_commits
from flcache.cache.format.plan_table import PlanTable
from flcache.cache.format.spec import CacheSpec, read_spec, write_spec
from flcache.cache.format.tar import last_member_offset
from flcache.cache.storage import Location, Store, open_store
from flcache.errors import CacheError

if TYPE_CHECKING:
    from flcache.batch import ChannelStatistics

TRAINING_SPLIT = "train"
_CONSTANT = 1e-6
"""A channel with a deviation below this part of its RMS counts as constant: the deviation is rounding error."""
_ROUNDING = 1e-6
_THREADS = 8


@dataclass
class ChannelSums:
    """Running sums over latent vectors of `width` channels."""

    width: int
    positions: int = 0
    sums: NDArray[np.float64] = field(init=False)
    """(2, D): sum, and sum of squares."""

    def __post_init__(self) -> None:
        self.sums = np.zeros((2, self.width))

    def add(self, latents: NDArray[np.float32]) -> None:
        """Add the vectors of latents (T, H, W, D)."""
        self.add_steps(step_sums(latents), positions=prod(latents.shape[1:-1]))

    def add_steps(self, sums: NDArray[np.float64], *, positions: int) -> None:
        """Add steps of `positions` vectors each, by their `step_sums` (T, 2, D)."""
        for step in sums:
            self.merge(positions, step)

    def merge(self, positions: int, sums: NDArray[np.float64]) -> None:
        self.positions += positions
        self.sums += sums

    def channels(self) -> dict[str, Any]:
        """The `channels` of `spec.json`: mean, rms, count."""
        mean, square = self.sums / self.positions
        return {"mean": mean.tolist(), "rms": np.sqrt(square).tolist(), "count": self.positions}


def step_sums(latents: NDArray[np.float32]) -> NDArray[np.float64]:
    """(T, 2, D): sum and sum of squares over the vectors of each step of latents (T, H, W, D)."""
    width = latents.shape[-1]
    sums = np.empty((len(latents), 2, width))
    for step, (total, square) in zip(latents, sums, strict=True):
        vectors = step.reshape(-1, width).astype(np.float64)
        vectors.sum(axis=0, out=total)
        np.einsum("nd,nd->d", vectors, vectors, out=square)
    return sums


def finalize_statistics(location: Location) -> bool:
    """Write the channel statistics into `spec.json` once all training shards are committed, or hold other clips.

    Returns whether they are there now. The fingerprint does not change.
    """
    store = open_store(location)
    spec = read_spec(store)
    commits = [commit for commit in read_commits(store, fingerprint=spec.fingerprint) if commit.split == TRAINING_SPLIT]
    planned = sum(split == TRAINING_SPLIT for split, _ in PlanTable(store).first_rows)
    if len(commits) < planned or not any(commit.positions for commit in commits):
        return spec.channels is not None
    if spec.channels is not None and spec.channels["count"] == sum(commit.positions for commit in commits):
        return True
    write_spec(store, replace(spec, channels=merge_channels(store, spec, commits)))
    return True


def merge_channels(store: Store, spec: CacheSpec, commits: list[Commit]) -> dict[str, Any]:
    """The `channels` of `spec.json` over the given shards: mean, rms, count. Raises CacheError if they are empty."""
    total = ChannelSums(spec.latent_shape[-1])
    with ThreadPoolExecutor(_THREADS) as threads:
        sums = threads.map(lambda commit: _read_sums(store, commit, total.width), commits)
        for commit, shard in zip(commits, sums, strict=True):
            total.merge(commit.positions, shard)
    if not total.positions:
        raise CacheError(f'{store}: no {TRAINING_SPLIT} clip to take channel statistics from; run "flcache encode"')
    return total.channels()


def channel_statistics(channels: dict[str, Any]) -> ChannelStatistics:
    """Mean and deviation from the `channels` of a spec; the deviation of a constant channel is 1."""
    import torch

    from flcache.batch import ChannelStatistics

    mean, deviation = np.array(channels["mean"]), channel_deviation(channels)
    return ChannelStatistics(
        mean=torch.from_numpy(mean.astype(np.float32)), std=torch.from_numpy(deviation.astype(np.float32))
    )


def channel_deviation(channels: dict[str, Any]) -> NDArray[np.float64]:
    """(D,) from the `channels` of a spec; 1 for a constant channel."""
    mean, rms = np.array(channels["mean"]), np.array(channels["rms"])
    deviation = np.sqrt(np.maximum(rms**2 - mean**2, 0.0))
    return np.where(deviation > _CONSTANT * rms, deviation, 1.0)


def _read_sums(store: Store, commit: Commit, width: int) -> NDArray[np.float64]:
    """The last member of the shard's tar, (2, D)."""
    tar = commit.files.tar
    check_size(store, tar, commit.tar_digest)
    offset = last_member_offset(commit.tar_bytes, 2 * width * 8)
    if offset >= 0:
        raw = store.read_part(tar, offset, 2 * width * 8)
        sums = np.frombuffer(raw.ljust(2 * width * 8, b"\xff"), dtype="<f8").reshape(2, width)
        if _are_sums(sums, commit.positions):
            return sums
    raise damaged(store, f"{tar}: its channel sums are of no latents")


def _are_sums(sums: NDArray[np.float64], positions: int) -> bool:
    """Whether `positions` float32 vectors can have these sums and sums of squares."""
    total, square = sums
    bounded = np.isfinite(sums).all() and (square >= 0).all() and (square <= positions * LARGEST**2).all()
    return bool(bounded and (np.abs(total) <= np.sqrt(positions * square) * (1 + _ROUNDING)).all())
