"""From a batch buffer of stored payloads to the latents of a batch, on the CPU or on a GPU.

B clips, T steps, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flcache.batch import ChannelStatistics
from flcache.cache.codecs.protocol import Codec
from flcache.cache.read.clips import StoredBatch
from flcache.cache.read.ring import BatchBuffer

Delivered = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]
"""Latents (B, T, H, W, D), times (B, T), valid (B, T) and arrays (B, T, A) by name, on the device."""


@dataclass(frozen=True)
class Decoder:
    """Turns stored payloads into latents, standardised if there are `statistics`."""

    codecs: tuple[Codec, ...]
    """One per cache, of the same class; each has the constants of its cache."""
    statistics: tuple[ChannelStatistics, ...] | None
    """One per cache."""

    @property
    def passes_through(self) -> bool:
        """Whether stored arrays are delivered unchanged."""
        return self.statistics is None and self.codecs[0].stores_latents

    def decode_into(self, owner: int, payloads: Sequence[Tensor], out: Tensor) -> None:
        """Fill `out` (B, T, H, W, D) with the clips of one cache in `payloads`."""
        statistics = self.statistics[owner] if self.statistics else None
        self.codecs[owner].standardise_into(payloads, statistics, out)


class HostDelivery:
    """Decodes each clip as soon as it has been read, while it is still in the processor's cache.

    `take` and `stage` run in a thread that reads, `deliver` in the one that asks for the batch.
    """

    def __init__(self, decoder: Decoder, device: torch.device) -> None:
        self._decoder, self._device = decoder, device

    def take(self, buffer: BatchBuffer, clip: int, owner: int) -> None:
        """Clip number `clip` of the batch has been read."""
        if buffer.decoded is not None:
            self._decoder.decode_into(owner, buffer.payloads, buffer.decoded[clip : clip + 1])

    def stage(self, buffer: BatchBuffer, stored: StoredBatch) -> None:
        """All clips of the batch have been read."""

    def deliver(self, buffer: BatchBuffer, stored: StoredBatch, staged: None) -> Delivered:
        """Latents are valid until the next batch is asked for; `staged` is what `stage` gave."""
        latents = buffer.payloads[0] if buffer.decoded is None else buffer.decoded
        return latents[: len(stored.ids)].to(self._device), *_beside(stored, self._device)


class CudaDelivery:
    """Copies a buffer to the device and decodes it there, on a stream beside the one that trains.

    Its methods are called as those of `HostDelivery` are.
    """

    def __init__(self, decoder: Decoder, shape: tuple[int, ...], device: torch.device) -> None:
        """`shape` is (T, H, W, D) of a clip."""
        self._decoder, self._shape, self._device = decoder, shape, device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def take(self, buffer: BatchBuffer, clip: int, owner: int) -> None:
        """Does nothing: the whole batch goes to the device at once."""

    def stage(self, buffer: BatchBuffer, stored: StoredBatch) -> tuple[Delivered, torch.cuda.Event]:
        """The batch, and the event that marks it as complete. Waits until the buffer has been copied."""
        count = len(stored.ids)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            payloads = [payload[:count].to(self._device, non_blocking=True) for payload in buffer.payloads]
            latents = payloads[0]
            if not self._decoder.passes_through:
                latents = self._decode(payloads, stored.owners)
            times, valid, arrays = _beside(stored, self._device)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._stream)
        ready.synchronize()
        return (latents, times, valid, arrays), ready

    def deliver(
        self, buffer: BatchBuffer, stored: StoredBatch, staged: tuple[Delivered, torch.cuda.Event]
    ) -> Delivered:
        delivered, ready = staged
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_event(ready)
        *tensors, arrays = delivered
        for tensor in (*tensors, *arrays.values()):  # not to be reused while the consumer's stream may read it
            tensor.record_stream(consumer)
        return delivered

    def _decode(self, payloads: Sequence[Tensor], owners: Sequence[int]) -> Tensor:
        """(B, T, H, W, D); clip by clip if they come from several caches."""
        latents = torch.empty((len(owners), *self._shape), device=self._device)
        if len(set(owners)) == 1:
            self._decoder.decode_into(owners[0], payloads, latents)
            return latents
        for clip, owner in enumerate(owners):
            one = slice(clip, clip + 1)
            self._decoder.decode_into(owner, [payload[one] for payload in payloads], latents[one])
        return latents


def _beside(stored: StoredBatch, device: torch.device) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What a batch has beside its latents."""
    times, valid = torch.from_numpy(stored.times).to(device), torch.from_numpy(stored.valid).to(device)
    return times, valid, {name: torch.from_numpy(array).to(device) for name, array in stored.arrays.items()}
