"""Latents stored as int8: standardised per channel, then one scale per latent vector.

A pretrained encoder has a few channels many times larger than the rest. Standardised with constants that the spec
keeps, every channel uses the 255 levels, and a reader that wants standardised latents needs one cast and one product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flcache.cache.codecs.protocol import Codec, PayloadLayout, Shape, check_held

if TYPE_CHECKING:
    from torch import Tensor

    from flcache.batch import ChannelStatistics

LEVELS = 127
SCALE_DTYPE = np.dtype("<f2")
"""float32 scales gave the same error to the fourth digit (0.55210 and 0.55209 %), in twice the bytes."""

LARGEST = float(np.finfo(SCALE_DTYPE).max) * LEVELS


@dataclass(frozen=True, eq=False)
class Int8Codec(Codec):
    """`latents ~ mean + std * scale * stored`, with `stored` in -127 to 127 and one `scale` per latent vector.

    Without constants the latents are taken as standardised already.
    """

    mean: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, np.float32))
    """(D,), or (1,) for all channels alike; so is `std`."""
    std: NDArray[np.float32] = field(default_factory=lambda: np.ones(1, np.float32))
    calibrated: bool = False
    """Whether the constants are those of a calibration."""
    name: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = True

    @classmethod
    def from_calibration(cls, calibration: Mapping[str, Any] | None) -> Int8Codec:
        if calibration is None:
            return cls()
        mean, std = (np.array(calibration[key], dtype=np.float32) for key in ("mean", "std"))
        return cls(mean, std, calibrated=True)

    def payloads(self, shape: Shape) -> tuple[PayloadLayout, ...]:
        latents = PayloadLayout("latents", np.dtype("|i1"), shape)
        return latents, PayloadLayout("scale", SCALE_DTYPE, shape[:-1])

    def encode(self, latents: NDArray[np.float32]) -> list[NDArray[Any]]:
        with np.errstate(over="ignore", invalid="ignore"):  # `check_held` finds them
            standardised = (latents - self.mean) / self.std  # (T, H, W, D)
            magnitude = np.abs(standardised)
            scale = (magnitude.max(axis=-1) / LEVELS).astype(SCALE_DTYPE)  # (T, H, W)
        if not np.isfinite(scale).all():
            check_held(latents, magnitude <= LARGEST, self.name, LARGEST)
        factor = np.divide(1, scale, out=np.zeros(scale.shape, np.float32), where=scale > 0, dtype=np.float32)
        standardised *= factor[..., None]
        np.rint(standardised, out=standardised)
        return [standardised.clip(-LEVELS, LEVELS).astype("|i1"), scale]

    def decode(self, payloads: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        stored, scale = payloads
        latents: NDArray[np.float32] = np.multiply(stored, scale[..., None], dtype=np.float32)
        latents *= self.std
        latents += self.mean
        return latents

    def standardise_into(self, buffers: Sequence[Tensor], statistics: ChannelStatistics | None, out: Tensor) -> None:
        import torch

        from flcache.cache.codecs.standardise import scale_into

        stored, scale = buffers
        scale_into(stored, scale, torch.from_numpy(self.mean), torch.from_numpy(self.std), statistics, out)

    def statistics(self) -> ChannelStatistics | None:
        if not self.calibrated:
            return None
        import torch

        from flcache.batch import ChannelStatistics

        return ChannelStatistics(mean=torch.from_numpy(self.mean), std=torch.from_numpy(self.std))
