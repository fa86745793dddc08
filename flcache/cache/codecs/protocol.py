"""What a codec is: the class to derive from to store latents in another way.

A codec turns the latents of a clip into payloads, the arrays that lie in a shard, and back. Every payload has the time
axis first, so that consecutive steps are one contiguous read; its other axes are the codec's choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flcache.errors import CacheError, Reason

if TYPE_CHECKING:
    from torch import Tensor

    from flcache.batch import ChannelStatistics

Shape = tuple[int, ...]

_WORTH_TORCH = 2**18
"""Values; fewer are cast before torch would be imported."""


class ValueRangeError(CacheError):
    """Latents that are not finite or beyond the codec's range; the reason says which."""

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
    bfloat16: bool = False
    """Whether the values are bfloat16, which numpy lacks; `dtype` is `uint16` then."""

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)

    @property
    def not_finite(self) -> int | None:
        """The bits that are all set in a value that is not finite; None where every value is finite."""
        if self.bfloat16:
            return 0x7F80
        if self.dtype.kind != "f":
            return None
        return int(np.array(np.inf, self.dtype).view(f"<u{self.dtype.itemsize}"))


class Codec(ABC):
    """How the latents of one cache are stored. `name`, `payloads`, `encode` and `decode` are enough to make one."""

    name: ClassVar[str]
    """The `codec` of a spec, and `cache.codec` of a configuration."""
    needs_calibration: ClassVar[bool] = False
    """Whether mean and deviation of the training latents must be known before the first clip is stored."""
    stores_latents: ClassVar[bool] = False
    """Whether its one payload is the latents in a float type of torch, which needs no decoding."""

    @classmethod
    def from_calibration(cls, calibration: Mapping[str, Any] | None) -> Codec:
        """The codec of a spec with this `calibration`: `mean` and `std` (D,), or None."""
        return cls()

    @abstractmethod
    def payloads(self, shape: Shape) -> tuple[PayloadLayout, ...]:
        """What a clip of `shape` (T, H, W, D) is stored as. Raises CacheError for a shape that it cannot store."""

    @abstractmethod
    def encode(self, latents: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The payloads of latents (T, H, W, D). Raises ValueRangeError naming step and channel."""

    @abstractmethod
    def decode(self, payloads: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The latents (T, H, W, D) of a clip or of some consecutive steps of it, in `latents_dtype`."""

    def standardise_into(self, buffers: Sequence[Tensor], statistics: ChannelStatistics | None, out: Tensor) -> None:
        """Fill `out`, float32 (B, T, H, W, D), with the latents, standardised if there are `statistics`.

        `buffers` are the payloads of B clips, clip first, on the device of `out`. By default every clip is decoded on
        the CPU.
        """
        import torch

        from flcache.cache.codecs.standardise import cast_into

        for clip, target in enumerate(out):
            decoded = self.decode([buffer[clip].cpu().numpy() for buffer in buffers])
            cast_into(torch.from_numpy(decoded), statistics, target)

    def statistics(self) -> ChannelStatistics | None:
        """Statistics that the stored values are standardised with already, if any: reading with these is fastest."""
        return None

    def clip_bytes(self, shape: Shape) -> int:
        """Bytes of all payloads of a clip of `shape`."""
        return sum(layout.num_bytes for layout in self.payloads(shape))

    def latents_dtype(self, shape: Shape) -> np.dtype[Any]:
        """The type that `decode` gives: the stored one where it `stores_latents`, else float32."""
        return self.payloads(shape)[0].dtype if self.stores_latents else np.dtype(np.float32)


def encode_and_decode(codec: Codec, latents: NDArray[np.float32]) -> tuple[list[NDArray[Any]], NDArray[np.float32]]:
    """The payloads of latents (T, H, W, D), and the latents that a reader gets from them, as float32.

    Raises ValueRangeError for values that the codec cannot hold, CacheError for a codec that does not do what it says.
    """
    payloads = codec.encode(latents)
    decoded = codec.decode(payloads)
    layouts = codec.payloads(latents.shape)
    says = [(layout.dtype, layout.shape) for layout in layouts] + [(codec.latents_dtype(latents.shape), latents.shape)]
    does = [(array.dtype, array.shape) for array in (*payloads, decoded)]
    if says != does or any(layout.shape[0] != len(latents) for layout in layouts):
        raise CacheError(
            f"codec {codec.name}: its payloads and decoded latents are {_list(does)}, but it says {_list(says)}, each "
            f"with {len(latents)} steps first; correct {type(codec).__name__}"
        )
    return payloads, cast(decoded, np.dtype(np.float32))


def cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Floats as a C-contiguous array of another float type. numpy takes 15 times as long for float16: 13 and 6 ms for
    the 2 Mi values of a clip, torch 0.7 and 0.4, on one core. They give the same bits."""
    if values.dtype == dtype or values.size < _WORTH_TORCH:
        with np.errstate(over="ignore"):  # the codec finds what has become infinite
            return np.ascontiguousarray(values, dtype=dtype)
    import torch

    given = np.require(values, requirements=["C", "W"])  # torch warns of arrays that cannot be written to
    cast_values: NDArray[Any] = torch.from_numpy(given).to(getattr(torch, dtype.name)).numpy()
    return cast_values


def _list(arrays: Sequence[tuple[np.dtype[Any], Shape]]) -> str:
    return ", ".join(f"{dtype} {list(shape)}" for dtype, shape in arrays)


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
