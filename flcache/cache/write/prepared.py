"""What a shard keeps of one clip: its payloads, how close they are to the encoder's latents, and its channel sums.

All of it follows from the latents alone, so that it can be computed where they are. T steps, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.cache.codecs.fidelity import Fidelity, measure
from flcache.cache.codecs.protocol import ValueRangeError, encode_and_decode
from flcache.cache.format.spec import CacheSpec
from flcache.cache.format.statistics import step_sums
from flcache.errors import CacheError


@dataclass(frozen=True)
class PreparedClip:
    """The latents of a clip, ready to be written."""

    payloads: list[NDArray[Any]]
    """As the codec stores them."""
    fidelity: Fidelity
    """Of what is stored with what the codec was given."""
    keep_fidelity: Fidelity | None
    """Of that with the encoder's latents; None where they are stored whole."""
    sums: NDArray[np.float64]
    """(valid steps, 2, D): sum and sum of squares of each channel as a reader gets it."""


def prepare(spec: CacheSpec, latents: NDArray[np.float32], valid_steps: int) -> PreparedClip:
    """Latents (T, H, W, D) as the encoder gave them, for a shard of a cache of `spec`.

    Raises ValueRangeError for values that the codec cannot hold.
    """
    if latents.shape != spec.encoder_shape:
        raise CacheError(f"latents of {latents.shape}, the spec says {spec.encoder_shape}")
    reduced = spec.reduce(latents)
    payloads, stored = encode_and_decode(spec.codec, reduced)
    kept = measure(latents, spec.reduction.reconstruct(reduced)) if spec.reduction else None
    return PreparedClip(payloads, measure(reduced, stored), kept, step_sums(stored[:valid_steps]))


@contextmanager
def naming(clip_id: str) -> Iterator[None]:
    """Errors of the block say which clip they are of."""
    try:
        yield
    except ValueRangeError as error:
        raise ValueRangeError(f"clip {clip_id}: {error}", reason=error.reason) from None
    except CacheError as error:
        raise CacheError(f"clip {clip_id}: {error}") from None
