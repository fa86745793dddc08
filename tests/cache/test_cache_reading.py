"""What was written is what is read: by LatentCache, by webdataset, by tar and numpy."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from small_cache import CODECS, SHAPE, D, T, clip_latents, make_cache

from flcache.cache import LatentCache, create_or_check, read_plan, read_spec
from flcache.cache.format.index import parse_index
from flcache.errors import CacheError, DamagedError


def tars(cache_dir: Path) -> list[Path]:
    found = sorted(cache_dir.glob("shards/*.tar"))
    assert found
    return found


def webdataset_samples(tars: list[Path]) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its last file to the collector
        urls = [str(tar) for tar in tars]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
        gc.collect()
    return samples


@pytest.mark.parametrize("codec", CODECS)
def test_read_equals_written(tmp_path: Path, codec: str) -> None:
    cache = LatentCache(make_cache(tmp_path / "cache", codec=codec))
    assert len(cache) == 23 + 5 - 2
    assert cache.clips("train") == len(cache.split("train")) == 22
    assert cache.splits == ("train", "val")
    for clip_id, clip in zip(cache.ids, cache, strict=True):
        expected = clip_latents(clip_id).astype(CODECS[codec])
        assert clip.clip_id == clip_id
        assert clip.latents.dtype == expected.dtype
        assert clip.latents.tobytes() == expected.tobytes()
        assert clip.times.tolist() == [0.125, 0.625, 1.125, 1.625]
        assert clip.seen_until == (0, 1, 2, 3)


def test_clips_are_those_of_the_plan(tmp_path: Path) -> None:
    cache_dir = make_cache(tmp_path / "cache")
    plan = read_plan(cache_dir).set_index("clip_id")
    for clip in LatentCache(cache_dir):
        row = plan.loc[clip.clip_id]
        assert (clip.video, clip.split) == (row["video"], row["split"])
        assert clip.label == row["label"]
    failed = {failure.clip_id for failure in LatentCache(cache_dir).failures()}
    assert failed == set(plan.index[(plan["shard"] == 0) & (plan["slot"] == 1)])


def test_padded_steps_are_not_valid(tmp_path: Path) -> None:
    valid = [clip.valid.tolist() for clip in LatentCache(make_cache(tmp_path / "cache"), "val")]
    assert valid == [[True] * 4] * 3 + [[True, True, False, False]]


def test_some_steps_are_a_slice_of_the_clip(tmp_path: Path) -> None:
    cache = LatentCache(make_cache(tmp_path / "cache"))
    for start in range(T):
        for stop in range(start + 1, T + 1):
            clip, part = cache[7], cache.steps(7, start, stop)
            assert np.array_equal(part.latents, clip.latents[start:stop])
            assert np.array_equal(part.times, clip.times[start:stop])
            assert np.array_equal(part.valid, clip.valid[start:stop])
            assert part.seen_until == tuple(range(stop - start))
    with pytest.raises(CacheError, match="4 steps"):
        cache.steps(0, 2, 5)


def test_numbers_wrap_and_end_as_in_a_list(tmp_path: Path) -> None:
    cache = LatentCache(make_cache(tmp_path / "cache"))
    assert cache[-1].clip_id == cache[len(cache) - 1].clip_id
    with pytest.raises(IndexError):
        cache[len(cache)]


@pytest.mark.parametrize("codec", CODECS)
def test_webdataset_reads_every_sample(tmp_path: Path, codec: str) -> None:
    cache = LatentCache(make_cache(tmp_path / "cache", codec=codec))
    samples = webdataset_samples(tars(cache.path))
    assert [sample["__key__"] for sample in samples] == cache.ids
    for sample, clip in zip(samples, cache, strict=True):
        assert sample["latents.npy"].tobytes() == clip.latents.tobytes()
        assert sample["latents.npy"].dtype == clip.latents.dtype
        metadata = sample["json"]
        assert (metadata["clip_id"], metadata["label"], metadata["shape"]) == (clip.clip_id, clip.label, [*SHAPE])
        assert metadata["mask"] == np.repeat(clip.valid, 2).tolist()


@pytest.mark.parametrize("codec", CODECS)
def test_tar_and_numpy_read_every_sample(tmp_path: Path, codec: str) -> None:
    cache = LatentCache(make_cache(tmp_path / "cache", codec=codec))
    for tar in tars(cache.path):
        subprocess.run(["tar", "-xf", tar, "-C", tmp_path], check=True)
    for clip in cache:
        assert np.load(tmp_path / f"{clip.clip_id}.latents.npy").tobytes() == clip.latents.tobytes()
        assert json.loads((tmp_path / f"{clip.clip_id}.json").read_text())["split"] == clip.split
    assert (tmp_path / "__flc__" / "fingerprint").read_text() == cache.fingerprint


def test_payloads_lie_on_pages(tmp_path: Path) -> None:
    for tar in tars(make_cache(tmp_path / "cache")):
        rows = parse_index(tar.with_suffix(".idx").read_bytes(), num_steps=T, num_payloads=1)
        assert len(rows) and not np.any(rows["payloads"]["offset"] % 4096)


def test_statistics_are_those_of_the_valid_steps(tmp_path: Path) -> None:
    cache_dir = make_cache(tmp_path / "cache")
    clips = list(LatentCache(cache_dir, "train"))
    values = np.concatenate([clip.latents[clip.valid].reshape(-1, D).astype(np.float64) for clip in clips])
    kept = LatentCache(cache_dir).statistics()
    np.testing.assert_allclose(kept.mean.numpy(), values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(kept.std.numpy(), values.std(0), rtol=1e-6)
    assert LatentCache(cache_dir).spec.channels is not None


def test_statistics_without_the_calibrated_spec_are_the_same(tmp_path: Path) -> None:
    complete = LatentCache(make_cache(tmp_path / "cache"))
    channels = complete._merged_channels
    assert channels == complete.spec.channels


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e300])
def test_sums_that_no_latents_have_are_damage(tmp_path: Path, value: float) -> None:
    """Whoever reads statistics of a half-finished cache reads them from the tars, which were not verified."""
    cache_dir = make_cache(tmp_path / "cache")
    spec = read_spec(cache_dir)
    (cache_dir / "spec.json").unlink()
    create_or_check(cache_dir, spec.hard, spec.soft)
    path = tars(cache_dir)[0]
    with tarfile.open(path) as tar:
        sums = tar.getmember("__flc__/channels").offset_data
    squares = sums + 8 * D
    for place in (squares,) if value == -1 else (sums, squares):  # a sum may be negative
        content = bytearray(path.read_bytes())
        whole = bytes(content)
        content[place : place + 8] = np.array(value, "<f8").tobytes()
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=f"{path.name}: its channel sums are of no latents"):
            LatentCache(cache_dir).statistics()
        path.write_bytes(whole)
    LatentCache(cache_dir).statistics()


def test_shard_of_other_size_is_damaged(tmp_path: Path) -> None:
    cache_dir = make_cache(tmp_path / "cache")
    for name in ("train-000001.tar", "train-000001.idx"):
        path = cache_dir / "shards" / name
        whole = path.read_bytes()
        for content in (whole[:-512], whole + b"\0"):
            path.write_bytes(content)
            with pytest.raises(DamagedError, match=f"{name}.*flcache repair {cache_dir}"):
                list(LatentCache(cache_dir))
        path.unlink()
        with pytest.raises(DamagedError, match=f"{name}: missing"):
            list(LatentCache(cache_dir))
        path.write_bytes(whole)
    assert len(list(LatentCache(cache_dir))) == 26


def test_every_damaged_commit_is_noticed(tmp_path: Path) -> None:
    cache_dir = make_cache(tmp_path / "cache")
    path = cache_dir / "commits" / "train-000002.json"
    whole = path.read_bytes()
    mutations = [
        whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :] for position in range(len(whole))
    ]
    for content in [b"", b"{}", b"null", whole[:-1], whole[: len(whole) // 2], b"[" * 10**5, *mutations]:
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=r"train-000002\.json"):
            LatentCache(cache_dir)
    (cache_dir / "commits" / "train-000009.json").write_bytes(whole)
    path.write_bytes(whole)
    with pytest.raises(DamagedError, match=r"train-000009\.json"):
        LatentCache(cache_dir)


def test_no_cache_and_no_split_are_clear(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no cache here"):
        LatentCache(tmp_path / "nothing")
    with pytest.raises(CacheError, match="no split 'test'; there are train, val"):
        LatentCache(make_cache(tmp_path / "cache"), "test")


def test_room_and_summary_load_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys, flcache.cache as cache; cache.summary(sys.argv[1]); cache.LatentCache(sys.argv[1])[0]; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, make_cache(tmp_path / "cache")], check=True)
