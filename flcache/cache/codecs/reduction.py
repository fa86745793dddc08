"""Storing less than the encoder gives: means of 2 x 2 patches, principal components of the channels, or both.

T steps, H x W patch grid, D channels, K components. Components are fitted to standardised latents: otherwise the few
channels of large scale would dominate. A spec holds the reduction as `keep`, its constants as `calibration.pca`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.cache.codecs.protocol import Shape
from flcache.errors import CacheError

POOL = 2
LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Components:
    """The principal components that latents are projected on."""

    mean: NDArray[np.float32]
    """(D,); so is `std`."""
    std: NDArray[np.float32]
    basis: NDArray[np.float32]
    """(D, K), orthonormal columns."""

    def project(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., D) -> (..., K)"""
        standardised: NDArray[np.float32] = (latents - self.mean) / self.std
        projected: NDArray[np.float32] = standardised @ self.basis
        return projected

    def reconstruct(self, projected: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., K) -> (..., D)"""
        latents: NDArray[np.float32] = (projected @ self.basis.T) * self.std + self.mean
        return latents


@dataclass(frozen=True, eq=False)
class Reduction:
    """From the encoder's latents (T, H, W, D) to what a codec stores, and back as far as possible."""

    shape: Shape
    """(T, H, W, D) of the encoder's latents."""
    pool: bool
    """Whether every 2 x 2 patches become their mean."""
    components: Components | None

    def apply(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents (T, H, W, D) reduced. A value that is not finite stays visible: the result has such values too."""
        with np.errstate(over="ignore", invalid="ignore"):  # the codec refuses them
            pooled = pool_patches(latents) if self.pool else latents
            return pooled if self.components is None else self.components.project(pooled)

    def reconstruct(self, reduced: NDArray[np.float32]) -> NDArray[np.float32]:
        """The closest latents (T, H, W, D) that `apply` would turn into `reduced`."""
        pooled = reduced if self.components is None else self.components.reconstruct(reduced)
        return pooled.repeat(POOL, axis=1).repeat(POOL, axis=2) if self.pool else pooled


def pool_patches(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, H, W, D) -> (T, H/2, W/2, D)"""
    T, H, W, D = latents.shape
    pooled: NDArray[np.float32] = latents.reshape(T, H // POOL, POOL, W // POOL, POOL, D).mean(axis=(2, 4))
    return pooled


def reduction_fields(shape: Shape, *, pool: bool, pca: int | None) -> dict[str, Any] | None:
    """The `keep` of a spec whose encoder gives `shape` (T, H, W, D); None without reduction. Raises CacheError."""
    if not pool and pca is None:
        return None
    fields = {"shape": list(shape), "pool": POOL if pool else None, "pca": pca}
    reduced_shape(fields, "encode.keep")
    return fields


def reduced_shape(keep: Mapping[str, Any], where: str) -> Shape:
    """(T, H, W, D) of what is stored under the `keep` of a spec. Raises CacheError for one that cannot be."""
    T, H, W, D = keep["shape"]
    pool, pca = keep["pool"], keep["pca"]
    if pool not in (None, POOL):
        raise CacheError(f"{where}: keep.pool is {pool!r}; it is {POOL}, or null for every patch")
    if pool and (H % POOL or W % POOL):
        raise CacheError(f"{where}: pool needs an even patch grid, this one is {H} x {W}; set encode.keep.pool=false")
    if pca is not None and not (type(pca) is int and 1 <= pca <= D):
        raise CacheError(f"{where}: pca is {pca!r}; it is from 1 to the {D} channels of the encoder, or null")
    return (T, H // (pool or 1), W // (pool or 1), pca or D)


def parse_reduction(keep: Any, calibration: Any, where: str) -> Reduction | None:
    """From `keep` and `calibration` of a spec; None without `keep`. Raises CacheError if either is malformed."""
    if keep is None:
        return None
    shape = keep.get("shape") if isinstance(keep, dict) and set(keep) == {"shape", "pool", "pca"} else None
    if not are_counts(shape, 4, least=1):
        raise CacheError(f"{where}: keep must hold shape [T, H, W, D], pool and pca")
    reduced_shape(keep, where)
    components = None
    if keep["pca"] is not None:
        fields = calibration.get("pca") if isinstance(calibration, dict) else None
        components = _parse_components(fields, keep["shape"][3], keep["pca"], where)
    return Reduction(tuple(keep["shape"]), keep["pool"] is not None, components)


def pack_basis(basis: NDArray[np.float32]) -> str:
    """Base64 of (D, K) little-endian float32: a basis of 1024 x 256 is 1.4 MB of JSON, a list of numbers 5 MB."""
    return base64.b64encode(np.ascontiguousarray(basis, dtype="<f4").tobytes()).decode()


def are_constants(fields: Any, width: int) -> bool:
    """Whether `fields` holds `mean` and `std` of `width` channels, finite in float32 and the latter above 0."""
    if not isinstance(fields, dict):
        return False
    return are_floats(fields.get("mean"), width) and are_floats(fields.get("std"), width, least=_SMALLEST)


def are_counts(values: Any, length: int, *, least: int) -> bool:
    """Whether `values` is a list of `length` whole numbers, none below `least`."""
    right_length = isinstance(values, list) and len(values) == length
    return right_length and all(type(value) is int and value >= least for value in values)


def are_floats(values: Any, width: int, *, least: float = -LARGEST) -> bool:
    """Whether `values` is a list of `width` floats, finite in float32 and none below `least`."""
    right_length = isinstance(values, list) and len(values) == width
    return right_length and all(isinstance(value, float) and least <= value <= LARGEST for value in values)


def _parse_components(fields: Any, width: int, count: int, where: str) -> Components:
    try:
        raw = base64.b64decode(fields["basis"], validate=True)
        basis = np.frombuffer(raw, dtype="<f4").reshape(width, count).astype(np.float32)
    except (TypeError, KeyError, ValueError):
        raise CacheError(f"{where}: calibration.pca must hold a basis of {width} x {count} in base64") from None
    if not (are_constants(fields, width) and np.isfinite(basis).all()):
        raise CacheError(f"{where}: calibration.pca must hold mean and std, above 0, of {width} channels")
    mean, std = (np.array(fields[name], dtype=np.float32) for name in ("mean", "std"))
    return Components(mean, std, basis)
