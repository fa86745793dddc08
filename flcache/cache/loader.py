"""Batches of standardised latents from a cache, in an order that any number of ranks replays.

B clips, T steps, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.cache.cache import LatentCache
from flcache.cache.reader import payload_buffer
from flcache.cache.sampler import EpochSampler
from flcache.leak import check_split


class LatentLoader:
    """Iterating yields the rest of the current epoch; the next iteration is the next epoch.

    `state_dict` is where the next batch starts, in samples of all ranks together: loading it resumes at that sample,
    also on another number of ranks. A batch owns its memory.

    Raises LeakError for a split at `context_steps` that leaks, unless `allow_leak`; CacheError for a cache, batch size
    and number of ranks that give no batch.
    """

    def __init__(
        self,
        cache: LatentCache,
        *,
        batch_size: int,
        context_steps: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        standardise: bool = True,
        steps: tuple[int, int] | None = None,
        allow_leak: bool = False,
    ) -> None:
        """`batch_size` is per rank; `steps` (start, stop) reads that window of every clip only."""
        self._start, self._stop = steps or (0, cache.latent_shape[0])
        cache.check_window(self._start, self._stop)
        seen_until = [seen - self._start for seen in cache.seen_until[self._start : self._stop]]
        self.leaks = check_split(seen_until, context_steps, allow_leak=allow_leak)
        """Whether the contexts have seen the targets."""
        self._cache, self._context_steps = cache, context_steps
        self._sampler = EpochSampler(
            len(cache),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
        self._statistics = cache.statistics() if standardise else None
        layouts = cache.spec.codec.payloads(cache.latent_shape)
        self._buffers = [payload_buffer(layout, self._stop - self._start, batch_size) for layout in layouts]

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[LatentBatch]:
        for share in self._sampler.remaining():
            self._sampler.advance()
            if len(share):
                yield self._read(share)

    def state_dict(self) -> dict[str, int]:
        """Where the next batch starts; small, and JSON."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken, with its seed. Raises CacheError if the cache has other clips now."""
        self._sampler.load_state_dict(state)

    def _read(self, indices: NDArray[np.int64]) -> LatentBatch:
        buffers = [buffer[: len(indices)] for buffer in self._buffers]
        times, valid = [], []
        for clip, index in enumerate(indices.tolist()):
            shard, row = self._cache.locate(index)
            reader = self._cache.reader(shard)
            for payload, buffer in enumerate(buffers):
                reader.read_into(row, payload, self._start, buffer[clip].data.cast("B"))
            times.append(reader.rows["times"][row, self._start : self._stop])
            valid.append(np.arange(self._start, self._stop) < reader.rows["valid_steps"][row])
        latents = self._decode(buffers)
        return LatentBatch(
            latents=latents,
            targets=latents,
            times=torch.from_numpy(np.stack(times)),
            valid=torch.from_numpy(np.stack(valid)),
            ids=tuple(self._cache.clip_id(index) for index in indices.tolist()),
            context_steps=self._context_steps,
        )

    def _decode(self, buffers: list[NDArray[Any]]) -> Tensor:
        """(B, T, H, W, D) float32, standardised."""
        stored = torch.from_numpy(self._cache.spec.codec.restore(buffers))
        latents = stored.to(torch.float32, copy=True)  # the buffers are read into again
        if self._statistics:  # as its `standardise`, without two more tensors of this size
            latents.sub_(self._statistics.mean).div_(self._statistics.std)
        return latents
