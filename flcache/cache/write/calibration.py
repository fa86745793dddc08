"""Calibration: statistics of some training latents, which int8 and principal components need before the first clip is
stored. D channels of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.cache.codecs.reduction import pack_basis, pool_patches
from flcache.cache.codecs.registry import get_codec
from flcache.cache.format.statistics import ChannelSums, channel_deviation
from flcache.errors import CacheError

CODEC_CALIBRATION_CLIPS = 256
"""Training clips that the `calibration` of a spec is taken from; all of them where there are fewer."""


class Calibrator:
    """Gathers sums over latents for the `calibration` of a spec. The same latents in the same order give the same."""

    def __init__(self, hard: Mapping[str, Any]) -> None:
        """`hard` are the hard fields of the spec, without the calibration."""
        keep = hard.get("keep") or {}
        self._pool, self._pca = keep.get("pool") is not None, keep.get("pca")
        width = (keep.get("shape") or hard["layout"]["shape"])[3]
        self._clips = 0
        self._sums = ChannelSums(width)
        self._products = np.zeros((width, width) if self._pca else (0, 0))

    def add(self, latents: NDArray[np.float32], valid_steps: int) -> None:
        """Add the first `valid_steps` of latents (T, H, W, D), unless a value is not finite."""
        latents = latents[:valid_steps]
        if not valid_steps or not np.isfinite(latents).all():
            return
        pooled = pool_patches(latents) if self._pool else latents
        self._sums.add(pooled)
        if self._pca:
            vectors = pooled.reshape(-1, self._sums.width).astype(np.float64)
            self._products += vectors.T @ vectors
        self._clips += 1

    def fields(self) -> dict[str, Any]:
        """The `calibration` of a spec. Raises CacheError if no clip was added."""
        if not self._clips:
            raise CacheError("no training clip with finite latents to calibrate with; see why the clips failed")
        channels = self._sums.channels()
        mean = np.array(channels["mean"], dtype=np.float32)
        std = channel_deviation(channels).astype(np.float32)
        if self._pca is None:
            return {"clips": self._clips, "mean": mean.tolist(), "std": std.tolist()}
        return {"clips": self._clips} | self._component_fields(mean, std, self._pca)

    def _component_fields(self, mean: NDArray[np.float32], std: NDArray[np.float32], count: int) -> dict[str, Any]:
        """The `count` components of standardised latents with the largest variance, and their deviations."""
        centre, width = mean.astype(np.float64), std.astype(np.float64)
        covariance = self._products / self._sums.positions - np.outer(centre, centre)
        covariance /= np.outer(width, width)  # (D, D)
        _, vectors = np.linalg.eigh(covariance)
        largest = vectors[:, ::-1][:, :count]
        signs = np.sign(largest[np.abs(largest).argmax(axis=0), np.arange(count)])  # eigh may return either sign
        basis = (largest * signs).astype(np.float32)
        variance = np.maximum(np.einsum("dk,de,ek->k", basis, covariance, basis, optimize=True), 0)
        total = float(np.trace(covariance))
        deviation = np.where(variance > total * 1e-12, np.sqrt(variance), 1.0).astype(np.float32)
        return {
            "mean": [0.0] * count,
            "std": deviation.tolist(),
            "pca": {
                "mean": mean.tolist(),
                "std": std.tolist(),
                "basis": pack_basis(basis),
                "variance_kept": float(f"{variance.sum() / total:.6g}") if total else 1.0,
            },
        }


def is_calibrated(hard: Mapping[str, Any]) -> bool:
    """Whether a spec with these hard fields needs a calibration pass."""
    return get_codec(hard["codec"]).needs_calibration or (hard.get("keep") or {}).get("pca") is not None
