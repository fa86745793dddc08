"""A cache as a `webdataset.WebDataset`, for those who have a pipeline of their own.

webdataset reads the tars; it ends early on some damage, and knows no checksums. So each clip is compared with what was
committed, and each shard must give all of its clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from flcache.cache.format.commit import damaged
from flcache.cache.read.cache import LatentCache
from flcache.cache.storage import Location
from flcache.errors import DamagedError

if TYPE_CHECKING:
    from webdataset import WebDataset


def as_webdataset(path: Location, split: str, **options: Any) -> WebDataset:
    """The clips of `split`, each a dict of `__key__` and the fields of CachedClip: `latents` (T, H, W, D), `times`, ...

    `options` are those of WebDataset, such as `shardshuffle=100` or `nodesplitter`; without any, clips come in plan
    order. Iterating raises DamagedError, naming the shard, where a clip is not what was written or is not there.
    """
    from webdataset import WebDataset

    cache = LatentCache(path, split)
    shards = {str((cache.path / commit.files.tar).resolve()): number for number, commit in enumerate(cache.commits)}
    urls = [url for url, number in shards.items() if cache.commits[number].clips]
    return WebDataset(urls, **{"shardshuffle": False, **options}).compose(_Checked(cache, shards))


class _Checked:
    """Raw samples, whole shards of them in a row, to decoded ones."""

    def __init__(self, cache: LatentCache, shards: Mapping[str, int]) -> None:
        self._cache, self._shards = cache, shards
        self._layouts = cache.spec.payloads

    def __call__(self, samples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        shard, row = -1, 0
        for sample in samples:
            found = self._shards[sample["__url__"]]
            if found != shard or row == self._cache.commits[shard].clips:
                self._check_whole(shard, row)
                shard, row = found, 0
            yield self._decoded(sample, shard, row)
            row += 1
        self._check_whole(shard, row)

    def _check_whole(self, shard: int, rows: int) -> None:
        if shard >= 0 and rows < (clips := self._cache.commits[shard].clips):
            raise self._damaged(shard, f"ends after {rows} clips, {clips} were written")

    def _decoded(self, sample: Mapping[str, Any], shard: int, row: int) -> dict[str, Any]:
        digests, payloads = self._cache.reader(shard).rows["payloads"]["xxh3_64"][row], []
        for layout, digest in zip(self._layouts, digests.tolist(), strict=True):
            stored = memoryview(sample.get(f"{layout.name}.npy", b""))
            content = bytearray(stored[-layout.num_bytes :])  # the header comes first; writable, as torch wants it
            if xxhash.xxh3_64_intdigest(content) != digest:
                raise self._damaged(shard, f"{layout.name} of {sample['__key__']} are not what was written")
            payloads.append(np.frombuffer(content, dtype=layout.dtype).reshape(layout.shape))
        clip = vars(self._cache.clip_at(shard, row, payloads))
        return {"__key__": clip["clip_id"], "__url__": sample["__url__"], **clip}

    def _damaged(self, shard: int, words: str) -> DamagedError:
        return damaged(self._cache.store, f"{self._cache.commits[shard].files.tar}: {words}")
