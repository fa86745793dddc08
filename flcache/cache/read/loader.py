"""Batches of standardised latents from a cache, in an order that any number of ranks replays.

Threads read whole batches ahead into a ring of reused buffers. B clips, T steps, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from flcache.batch import LatentBatch
from flcache.cache.read.ahead import ShardsAhead
from flcache.cache.read.cache import LatentCache
from flcache.cache.read.clips import ClipReader, StoredBatch
from flcache.cache.read.delivery import CudaDelivery, Decoder, HostDelivery
from flcache.cache.read.mixture import Mixture
from flcache.cache.read.ring import BatchBuffer, BufferShape, make_buffer, read_ahead
from flcache.errors import CacheError
from flcache.leak import check_boundary
from flcache.sampling.sampler import EpochSampler

SPARE_BUFFERS = 2
"""Besides one per thread: the batch that the consumer works on, and one that is ready."""


class _Ring(NamedTuple):
    buffers: tuple[BatchBuffer, ...]
    delivery: HostDelivery | CudaDelivery


class LatentLoader(IterableDataset[LatentBatch]):
    """Iterating yields the rest of the current epoch; the next iteration is the next epoch.

    A batch is valid until the next is asked for: its latents lie in a buffer that is used again. `copy=True` gives
    every batch its own. Memory is a ring of `threads + 2` batches.

    `state_dict` is where the next batch starts, in samples of all ranks together: loading it resumes at that sample,
    also on another number of ranks and threads.

    For a plain loop, Accelerate or Lightning. Needs no `DataLoader` (one with `batch_size=None` and no workers does no
    harm) and no `prepare`: `rank` and `world_size` decide what is read.

    Raises LeakError if a context of `context_steps` leaks, unless `allow_leak`; CacheError for a cache, batch size and
    number of ranks that give no batch; while iterating, DamagedError for a clip that is not what was written.
    """

    def __init__(
        self,
        cache: LatentCache | Mixture,
        *,
        batch_size: int,
        context_steps: int,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_block: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        even_last: bool = True,
        standardise: bool = True,
        steps: tuple[int, int] | None = None,
        allow_leak: bool = False,
        threads: int = 2,
        verify: str = "first_epoch",
        copy: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """`batch_size` is per rank; `even_last` is that of `rank_share`; `steps` (start, stop) reads only those of
        every clip.

        `shuffle_block` is for a cache larger than memory: blocks of that many neighbouring clips are shuffled, and the
        clips within each, and the kernel is told ahead which clips come. Without `standardise`, latents are in the
        stored type for float16 and float32, float32 for all other codecs. `verify` is `always`, `first_epoch` (a clip
        when it is first read) or `off`; checking a clip reads all of its steps.
        """
        caches = cache.caches if isinstance(cache, Mixture) else (cache,)
        self._steps = steps or (0, caches[0].latent_shape[0])
        if threads < 1:
            raise CacheError(f"{threads} threads; a loader needs at least 1")
        self.leaks = False
        """Whether the contexts have seen the targets."""
        start, stop = self._steps
        for each in caches:
            each.check_steps(start, stop)
            seen_until = [seen - start for seen in each.seen_until[start:stop]]
            self.leaks |= check_boundary(seen_until, context_steps, allow_leak=allow_leak)
        self._batch_size, self._context_steps, self._threads, self._copy = batch_size, context_steps, threads, copy
        self._device = torch.device(device)
        self._sampler = EpochSampler(
            sum(map(len, caches)),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            block=shuffle_block,
            parts=cache.parts if isinstance(cache, Mixture) else None,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            even_last=even_last,
        )
        self._clips = ClipReader(caches, self._steps, verify=verify, read_ahead=shuffle_block is not None)
        self._spec, self._checks = caches[0].spec, verify != "off"
        statistics = tuple(each.statistics() for each in caches) if standardise else None
        self._decoder = Decoder(tuple(each.spec.codec for each in caches), statistics)
        self._idle: list[_Ring] = []

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[LatentBatch]:
        if get_worker_info() is not None:
            raise CacheError("LatentLoader reads with threads of its own: give the DataLoader num_workers=0")
        ring = self._idle.pop() if self._idle else self._make_ring()

        def read(numbers: NDArray[np.int64], buffer: BatchBuffer) -> tuple[StoredBatch, Any] | None:
            if not len(numbers):  # this rank has no clip of a short last batch
                return None
            stored = self._clips.read(numbers, buffer, ring.delivery.take)
            return stored, ring.delivery.stage(buffer, stored)

        ahead = ShardsAhead(self._clips, self._sampler.remaining()) if self._clips.ahead_bytes else None
        with closing(read_ahead(self._sampler.remaining(), ring.buffers, self._threads, read)) as batches:
            for result, buffer in batches:
                self._sampler.advance()
                if ahead is not None:
                    ahead.advance()
                if result is not None:
                    yield self._batch(ring, buffer, *result)
        self._idle.append(ring)  # not after an exception: a thread may still be writing to its buffers

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts; small, and JSON."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, with its seed. Raises CacheError if the cache has other clips now."""
        self._sampler.load_state_dict(state)

    def _batch(self, ring: _Ring, buffer: BatchBuffer, stored: StoredBatch, staged: Any) -> LatentBatch:
        latents, times, valid, arrays = ring.delivery.deliver(buffer, stored, staged)
        if self._copy and self._device.type == "cpu":  # on another device every batch is new
            latents = latents.clone()
        return LatentBatch(
            latents=latents,
            targets=latents,
            times=times,
            valid=valid,
            ids=stored.ids,
            context_steps=self._context_steps,
            arrays=arrays,
        )

    def _make_ring(self) -> _Ring:
        num_steps, cuda = self._steps[1] - self._steps[0], self._device.type == "cuda"
        shape = BufferShape(
            layouts=self._spec.codec.payloads(self._spec.latent_shape),
            latent_shape=self._spec.latent_shape,
            batch_size=self._batch_size,
            num_steps=num_steps,
            decodes=not (cuda or self._decoder.passes_through),
            checks=self._checks,
            pinned=cuda,
        )
        self._clips.check_sizes()
        buffers = tuple(make_buffer(shape) for _ in range(self._threads + SPARE_BUFFERS))
        if not cuda:
            return _Ring(buffers, HostDelivery(self._decoder, self._device))
        return _Ring(buffers, CudaDelivery(self._decoder, (num_steps, *self._spec.latent_shape[1:]), self._device))
