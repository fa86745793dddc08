"""Arrays of the videos' frames beside the latents: written is read, by every way of reading, and damage is found."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_cache import SHAPE, T, clip_arrays, encoded_clip, hard_spec, make_cache, plan_cache

from flcache.cache import LatentCache, LatentLoader, Mixture, ShardWriter, as_webdataset, make_spec, read_plan, summary
from flcache.cache.check.verify import verify_cache
from flcache.errors import CacheError, DamagedError

ARRAYS = {"actions": 6, "states": 1}


@pytest.fixture(scope="module", params=["float16", "int8"])
def cache_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("cache"), codec=request.param, arrays=ARRAYS)


def test_clips_come_with_their_arrays(cache_dir: Path) -> None:
    cache, plain = LatentCache(cache_dir), LatentCache(make_plain(cache_dir))
    assert cache.spec.arrays == {"actions": (T, 6), "states": (T, 1)} and cache.fingerprint != plain.fingerprint
    for index in range(len(cache)):
        clip = cache[index]
        np.testing.assert_array_equal(clip.latents, plain[index].latents, strict=True)
        expected = clip_arrays(clip.clip_id, cache.spec)
        assert list(clip.arrays) == ["actions", "states"]
        for name, array in expected.items():
            np.testing.assert_array_equal(clip.arrays[name], array, strict=True)
            np.testing.assert_array_equal(cache.steps(index, 1, 3).arrays[name], array[1:3], strict=True)
    assert verify_cache(cache_dir).ok
    assert summary(cache_dir)["arrays"] == {"actions": [T, 6], "states": [T, 1]}


def make_plain(cache_dir: Path) -> Path:
    """The same clips in a cache without arrays."""
    folder = cache_dir.with_name(f"{cache_dir.name}-plain")
    return folder if folder.exists() else make_cache(folder, codec=LatentCache(cache_dir).spec.codec.name)


@pytest.mark.parametrize("steps", [None, (1, 4)])
@pytest.mark.parametrize("verify", ["always", "off"])
@pytest.mark.parametrize("standardise", [True, False])
def test_batches_come_with_the_arrays_of_their_clips(
    cache_dir: Path, steps: tuple[int, int] | None, verify: str, standardise: bool
) -> None:
    cache = LatentCache(cache_dir, "train")
    options: dict[str, Any] = {"batch_size": 4, "context_steps": 1, "steps": steps, "verify": verify}
    loader = LatentLoader(cache, **options, standardise=standardise, drop_last=False)
    plain = LatentLoader(
        LatentCache(make_plain(cache_dir), "train"), **options, standardise=standardise, drop_last=False
    )
    start, stop = steps or (0, T)
    kept = []
    for batch, other in zip(loader, plain, strict=True):
        assert batch.ids == other.ids and torch.equal(batch.latents, other.latents) and not other.arrays
        kept.append(batch)
    for batch in kept:  # they are no part of the reused buffers
        for name in ARRAYS:
            expected = [clip_arrays(clip_id, cache.spec)[name][start:stop] for clip_id in batch.ids]
            np.testing.assert_array_equal(batch.arrays[name].numpy(), np.array(expected), strict=True)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its last file to the collector
def test_webdataset_gives_them_too(cache_dir: Path) -> None:
    cache = LatentCache(cache_dir)
    for sample in as_webdataset(cache_dir, "val"):
        for name, array in clip_arrays(sample["clip_id"], cache.spec).items():
            np.testing.assert_array_equal(sample["arrays"][name], array, strict=True)
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_flipped_bit_of_an_array_is_found(tmp_path: Path) -> None:
    cache = LatentCache(make_cache(tmp_path / "cache", arrays=ARRAYS), "val")
    place = cache.reader(0).rows["payloads"][0, 1]
    tar = cache.path / cache.commits[0].files.tar
    content = bytearray(tar.read_bytes())
    content[int(place["offset"]) + 5] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DamagedError, match="actions of slot 0 are not what was written"):
        LatentCache(cache.path, "val")[0]
    with pytest.raises(DamagedError, match="actions of slot 0"):
        list(LatentLoader(LatentCache(cache.path, "val"), batch_size=1, context_steps=1))
    with pytest.raises(DamagedError, match="actions of"):
        list(as_webdataset(cache.path, "val"))
    (damage,) = verify_cache(cache.path).damaged
    assert damage.problem == "its actions are not what was written"
    gc.collect()


@pytest.mark.parametrize(
    "arrays",
    [{}, {"actions": np.zeros((T, 5), np.float32)}, {"actions": np.zeros((T, 6))}, {"other": np.zeros((T, 6))}],
)
def test_a_clip_without_the_arrays_of_its_spec_is_refused(arrays: dict[str, Any], tmp_path: Path) -> None:
    spec = plan_cache(tmp_path, arrays={"actions": 6})
    row = next(read_plan(tmp_path).itertuples())
    with ShardWriter(tmp_path, "train", 0, spec) as writer, pytest.raises(CacheError, match="the spec says float32"):
        writer.add(encoded_clip(row, arrays=arrays))


@pytest.mark.parametrize(
    "arrays",
    [{"latents": [4, 1]}, {"actions": [3, 1]}, {"actions": [4]}, {"a/b": [4, 1]}, {"actions": [4, 2**40]}, [4]],
)
def test_a_spec_with_arrays_that_no_clip_can_have_is_refused(arrays: Any) -> None:
    hard = hard_spec() | {"layout": {"shape": list(SHAPE), "arrays": arrays}}
    with pytest.raises(CacheError, match=r"layout\.arrays"):
        make_spec(hard)


def test_caches_with_other_arrays_do_not_mix(cache_dir: Path) -> None:
    with pytest.raises(CacheError, match="do not mix with those"):
        Mixture([LatentCache(cache_dir), LatentCache(make_plain(cache_dir))], [1, 1])
