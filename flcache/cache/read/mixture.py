"""Several caches read as one, each with its weight."""

from __future__ import annotations

from collections.abc import Sequence

from flcache.cache.read.cache import LatentCache
from flcache.errors import CacheError


class Mixture:
    """Caches, or parts of them, to draw clips from in proportion to `weights`.

    An epoch has as many clips as the caches together, from each cache exactly its share by weight; a cache with fewer
    clips than its share is read again, in another order. Every cache is standardised with its own statistics. Raises
    CacheError for caches whose clips cannot lie in one batch, and for weights that are not above zero.
    """

    def __init__(self, caches: Sequence[LatentCache], weights: Sequence[float]) -> None:
        self.caches, self.weights = tuple(caches), tuple(map(float, weights))
        if not caches or len(caches) != len(weights):
            raise CacheError(f"a mixture of {len(caches)} caches with {len(weights)} weights; give one for each")
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise CacheError(f"a mixture with weights {list(weights)}; every weight is above zero")
        first = caches[0]
        for cache in caches:
            if not len(cache):
                raise CacheError(f"{cache.store}: no clips to mix in; leave it out")
            if cache.spec.arrays != first.spec.arrays:
                kept = [spec.arrays or "no arrays" for spec in (cache.spec, first.spec)]
                raise CacheError(f"{cache.store}: clips with {kept[0]} do not mix with those with {kept[1]}")
            if (cache.latent_shape, cache.spec.codec.name) != (first.latent_shape, first.spec.codec.name):
                raise CacheError(
                    f"{cache.store}: {cache.spec.codec.name} latents of {cache.latent_shape} do not mix with the "
                    f"{first.spec.codec.name} latents of {first.latent_shape} in {first.store}"
                )

    @property
    def parts(self) -> tuple[tuple[int, float], ...]:
        """The clips and the weight of each cache."""
        return tuple(zip(map(len, self.caches), self.weights, strict=True))
