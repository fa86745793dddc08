"""Options of a cache: where it is, and how latents are stored in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flcache.bounds import Formerly, Fraction, OptionalPath, Positive
from flcache.cache.codecs.registry import CodecName
from flcache.cache.storage import DEFAULT_BYTES


@dataclass(frozen=True)
class CacheOptions:
    dir: OptionalPath = None
    """Folder of the cache, or its URL: `s3://bucket/k400`, or any other that fsspec knows."""
    local_dir: OptionalPath = None
    """Where files at URLs are kept on this machine; `~/.cache/flcache` if null."""
    local_bytes: Positive = DEFAULT_BYTES
    """How much is kept there at most; what was used longest ago goes."""
    codec: CodecName = "float16"
    """How latents are stored; `int8` takes half the bytes of `float16`, calibrated on training clips beforehand."""
    min_cosine: Fraction | None = None
    """How close every stored latent vector must be to the encoder's; encoding stops at one that is not."""
    shard_bytes: Positive = 256 * 2**20
    """About how large a shard gets."""
    seed: int = 0
    """Shuffles the clips over the shards, once, at planning."""


@dataclass(frozen=True)
class ReductionOptions:
    """How latents are reduced before they are stored."""

    pool: Annotated[bool, Formerly(((None, False), (2, True)))] = False
    """Store the mean of every 2 x 2 patches, instead of every patch."""
    pca: Positive | None = None
    """Principal components to store, fitted once on training clips; null stores every channel."""
