"""What a codec is, and the arrays that it puts into a shard.

A codec turns the float32 latents of a clip into payloads, the arrays that lie in a shard, and back. Every payload has
the time axis first, so that a window of steps is one contiguous read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flcache.errors import CacheError, Reason

if TYPE_CHECKING:
    from torch import Tensor

    from flcache.batch import ChannelStatistics

Shape = tuple[int, ...]


class ValueRangeError(CacheError):
    """Latents that are not finite, or beyond what the codec can hold: the reason says which."""

    def __init__(self, message: str, *, reason: Reason = "out of range") -> None:
        super().__init__(message)
        self.reason = reason


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
        """The latents in the smallest float type that holds the stored values exactly; float32 for int8."""

    def decode(self, payloads: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """The latents as float32."""

    def standardise_into(self, buffers: Sequence[Tensor], statistics: ChannelStatistics | None, out: Tensor) -> None:
        """Fill `out`, float32 (B, T, H, W, D), with standardised latents, or, without `statistics`, as they are.

        `buffers` are the payloads of B clips, clip first, as they are stored, on the device of `out`.
        """


def check_held(latents: NDArray[np.float32], held: NDArray[np.bool_], codec: str, largest: float) -> None:
    """Raises ValueRangeError for the first of the `latents` (T, H, W, D) that is not `held`, if there is one."""
    if held.all():
        return
    first = tuple(np.argwhere(~held)[0])
    value = latents[first]
    place = f"step {first[0]}, channel {first[-1]} is {value:g}"
    if not np.isfinite(value):
        raise ValueRangeError(
            f"{place}: the encoder gave a value that is not finite; encode in float32 (encoder.dtype)",
            reason="not finite",
        )
    raise ValueRangeError(f'{place}, beyond the largest {codec} ({largest:g}); use "cache.codec=float32"')
