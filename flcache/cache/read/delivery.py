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
from flcache.cache.read.ring import BatchBuffer


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

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def take(self, buffer: BatchBuffer, clip: int, owner: int) -> None:
        """Clip number `clip` of the batch has been read."""
        if buffer.decoded is not None:
            self._decoder.decode_into(owner, buffer.payloads, buffer.decoded[clip : clip + 1])

    def stage(self, buffer: BatchBuffer, owners: Sequence[int]) -> None:
        """All clips of the batch have been read, each from the cache whose number is in `owners` (B,)."""

    def deliver(self, buffer: BatchBuffer, num_clips: int, staged: None) -> Tensor:
        """(B, T, H, W, D), valid until the next is asked for; `staged` is what `stage` gave."""
        latents = buffer.payloads[0] if buffer.decoded is None else buffer.decoded
        return latents[:num_clips]


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

    def stage(self, buffer: BatchBuffer, owners: Sequence[int]) -> tuple[Tensor, torch.cuda.Event]:
        """The latents, and the event that marks them as complete. Waits until the buffer has been copied."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            payloads = [payload[: len(owners)].to(self._device, non_blocking=True) for payload in buffer.payloads]
            latents = payloads[0]
            if not self._decoder.passes_through:
                latents = self._decode(payloads, owners)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._stream)
        ready.synchronize()
        return latents, ready

    def deliver(self, buffer: BatchBuffer, num_clips: int, staged: tuple[Tensor, torch.cuda.Event]) -> Tensor:
        latents, ready = staged
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_event(ready)
        latents.record_stream(consumer)  # its memory is not reused while the consumer's stream may read it
        return latents

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
