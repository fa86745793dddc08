"""How latents are stored: float32 as they are, or float16.

A codec turns the float32 latents of a clip into payloads, the arrays that lie in a shard, and back. Every payload has
the time axis first, so that a window of steps is one contiguous read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flcache.errors import CacheError

Shape = tuple[int, ...]


class ValueRangeError(CacheError):
    """Latents that are not finite, or beyond what the codec can hold."""


@dataclass(frozen=True)
class PayloadLayout:
    """One array of a clip, as it lies in the shard under `<clip_id>.<name>.npy`."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    """Time axis first."""

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


class Codec(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def storage_dtype(self) -> np.dtype[Any]: ...

    def payloads(self, shape: Shape) -> tuple[PayloadLayout, ...]:
        """What a clip of `shape` (T, H, W, D) is stored as."""

    def clip_bytes(self, shape: Shape) -> int:
        """Bytes of all payloads of a clip of `shape`."""

    def encode(self, latents: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The payloads of latents (T, H, W, D). Raises ValueRangeError naming step and channel."""

    def restore(self, payloads: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The latents in the smallest float type that holds the stored values exactly."""

    def decode(self, payloads: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """The latents as float32."""


@dataclass(frozen=True)
class FloatCodec:
    """One payload: the latents cast to `storage_dtype`."""

    name: str
    storage_dtype: np.dtype[Any]

    def payloads(self, shape: Shape) -> tuple[PayloadLayout, ...]:
        return (PayloadLayout("latents", self.storage_dtype, shape),)

    def clip_bytes(self, shape: Shape) -> int:
        return self.payloads(shape)[0].num_bytes

    def encode(self, latents: NDArray[np.float32]) -> list[NDArray[Any]]:
        with np.errstate(over="ignore"):  # looked for in the next line
            stored = np.ascontiguousarray(latents, dtype=self.storage_dtype)
        if not np.isfinite(stored).all():
            raise ValueRangeError(_first_bad_value(latents, stored, self.name))
        return [stored]

    def restore(self, payloads: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return payloads[0]

    def decode(self, payloads: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        return payloads[0].astype(np.float32, copy=False)


CODECS: dict[str, Codec] = {
    "float16": FloatCodec("float16", np.dtype("<f2")),
    "float32": FloatCodec("float32", np.dtype("<f4")),
}


def get_codec(name: Any) -> Codec:
    """The codec called `name`. Raises CacheError that lists those there are."""
    if not isinstance(name, str) or name not in CODECS:
        raise CacheError(f'no codec {name!r}; "cache.codec" is one of {", ".join(sorted(CODECS))}')
    return CODECS[name]


def _first_bad_value(latents: NDArray[np.float32], stored: NDArray[Any], codec: str) -> str:
    first = tuple(np.argwhere(~np.isfinite(stored))[0])
    value = latents[first]
    place = f"step {first[0]}, channel {first[-1]} is {value:g}"
    if not np.isfinite(value):
        return f"{place}: the encoder gave a value that is not finite; encode in float32 (encoder.dtype)"
    largest = np.finfo(stored.dtype).max
    return f'{place}, beyond the largest {codec} ({largest:g}); use "cache.codec=float32"'
