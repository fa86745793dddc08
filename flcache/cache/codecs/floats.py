"""Latents stored as floats: one payload, one value each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flcache.cache.codecs.protocol import Codec, PayloadLayout, Shape, cast, check_held

if TYPE_CHECKING:
    from torch import Tensor

    from flcache.batch import ChannelStatistics

BFLOAT16_MAX = float(np.array(0x7F7F0000, dtype=np.uint32).view(np.float32))
_BFLOAT16_EXPONENT = np.uint16(0x7F80)


class FloatCodec(Codec):
    """The latents cast to `dtype`."""

    dtype: ClassVar[np.dtype[Any]]
    stores_latents = True

    def payloads(self, shape: Shape) -> tuple[PayloadLayout, ...]:
        return (PayloadLayout("latents", self.dtype, shape),)

    def encode(self, latents: NDArray[np.float32]) -> list[NDArray[Any]]:
        stored = cast(latents, self.dtype)
        exponent = np.array(np.inf, self.dtype).view(f"<u{self.dtype.itemsize}")  # its bits are set in inf and NaN only
        if (stored.view(exponent.dtype) & exponent).max(initial=0) == exponent:
            check_held(latents, np.isfinite(stored), self.name, float(np.finfo(stored.dtype).max))
        return [stored]

    def decode(self, payloads: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return payloads[0]

    def standardise_into(self, buffers: Sequence[Tensor], statistics: ChannelStatistics | None, out: Tensor) -> None:
        from flcache.cache.codecs.standardise import cast_into

        cast_into(buffers[0], statistics, out)


class Float16Codec(FloatCodec):
    name = "float16"
    dtype = np.dtype("<f2")


class Float32Codec(FloatCodec):
    name = "float32"
    dtype = np.dtype("<f4")


class BFloat16Codec(Codec):
    """The upper half of each float32, rounded to the nearest even. numpy, which lacks the type, reads `uint16`."""

    name = "bfloat16"

    def payloads(self, shape: Shape) -> tuple[PayloadLayout, ...]:
        return (PayloadLayout("latents", np.dtype("<u2"), shape, bfloat16=True),)

    def encode(self, latents: NDArray[np.float32]) -> list[NDArray[Any]]:
        bits = np.ascontiguousarray(latents, dtype=np.float32).view(np.uint32)
        stored = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")
        held = np.isfinite(latents) & ((stored & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT)
        check_held(latents, held, self.name, BFLOAT16_MAX)
        return [stored]

    def decode(self, payloads: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        return (payloads[0].astype(np.uint32) << 16).view(np.float32)

    def standardise_into(self, buffers: Sequence[Tensor], statistics: ChannelStatistics | None, out: Tensor) -> None:
        import torch

        from flcache.cache.codecs.standardise import cast_into

        cast_into(buffers[0].view(torch.bfloat16), statistics, out)
