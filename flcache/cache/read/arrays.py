"""Mean and deviation of the arrays that are kept beside latents. T steps, A numbers a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flcache.cache.read.cache import LatentCache
from flcache.errors import CacheError

if TYPE_CHECKING:
    from flcache.batch import ChannelStatistics

MOST_CLIPS = 16_384
"""Of a split, its first, which are a random sample since plans are shuffled."""


def array_statistics(cache: LatentCache, name: str) -> ChannelStatistics:
    """Of the array `name` (T, A) of the clips here, over steps that are not padding; no latents are read."""
    names = [layout.name for layout in cache.spec.payloads]

    def rows() -> Iterable[NDArray[np.float32]]:
        for index in range(min(len(cache), MOST_CLIPS)):
            shard, row = cache.locate(index)
            reader = cache.reader(shard)
            yield reader.array(row, names.index(name))[: reader.valid_steps[row]]

    return statistics_of(rows())


def statistics_of(rows: Iterable[NDArray[np.float32]]) -> ChannelStatistics:
    """Of rows (n, A) each; a number that never changes has deviation 1. Raises CacheError where there are none."""
    import torch

    from flcache.batch import ChannelStatistics

    if not (found := list(rows)):
        raise CacheError("there is no training clip to standardise actions with; look at what failed")
    values = np.concatenate(found).astype(np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)
    std[std <= 1e-6 * np.abs(mean)] = 1.0
    return ChannelStatistics(*(torch.from_numpy(each.astype(np.float32)) for each in (mean, std)))
