"""Latents from elsewhere become a cache like any other: whole, repeatable, resumable, and true to the leak rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trees import tree

from flcache.cache import (
    CacheWriter,
    Calibrator,
    ClipInfo,
    LatentCache,
    LatentLoader,
    read_plan,
    read_spec,
    summary,
)
from flcache.errors import CacheError, DataError, LeakError, SpecMismatch

SHAPE = T, H, W, D = (4, 2, 3, 8)
CLIPS = 11
IDS = [f"clip-{number}" for number in range(CLIPS)]
LATENTS = np.random.default_rng(0).normal(1, 3, size=(CLIPS, *SHAPE)).astype(np.float32)
THREE_A_SHARD = 3 * LATENTS[0].size * 2


def writer(path: Path, **options: Any) -> CacheWriter:
    return CacheWriter(path, SHAPE, **{"spec": {"encoder": "mine"}, "shard_bytes": THREE_A_SHARD} | options)


@pytest.mark.parametrize("seed", [None, 5])
def test_array_becomes_a_cache(tmp_path: Path, seed: int | None) -> None:
    infos = [
        ClipInfo(name, label="run", video=f"{name}.mp4", times=[0.5 * step for step in range(T)], valid_steps=3)
        for name in IDS
    ]
    assert writer(tmp_path, seed=seed).write("train", infos, LATENTS) == []
    cache = LatentCache(tmp_path, "train")
    assert (cache.ids == IDS) == (seed is None) and sorted(cache.ids) == sorted(IDS)
    for clip in cache:
        assert np.array_equal(clip.latents, LATENTS[IDS.index(clip.clip_id)].astype(np.float16))
        assert (clip.label, clip.video, clip.split) == ("run", f"{clip.clip_id}.mp4", "train")
        assert clip.times.tolist() == [0, 0.5, 1, 1.5] and clip.valid.tolist() == [True, True, True, False]
    assert len(cache.commits) == 4 and cache.spec.channels is not None
    assert summary(tmp_path)["encoder"] == "mine"


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "int8"])
def test_every_kind_of_latents_gives_the_same_bytes(tmp_path: Path, codec: str) -> None:
    kinds: dict[str, Any] = {
        "array": LATENTS,
        "list": list(LATENTS),
        "torch": torch.from_numpy(LATENTS),
        "iterator": iter(LATENTS),
    }
    calibrator = Calibrator({"codec": codec, "layout": {"shape": SHAPE}})
    for latents in LATENTS:
        calibrator.add(latents, T)
    for kind, latents in kinds.items():
        calibration = calibrator.fields() if kind == "iterator" and codec == "int8" else None
        writer(tmp_path / kind, codec=codec, calibration=calibration).write("train", IDS, latents)
    written = [tree(tmp_path / kind) for kind in kinds]
    assert all(each == written[0] for each in written)


def test_bfloat16_tensors_are_taken_as_they_are(tmp_path: Path) -> None:
    latents = torch.from_numpy(LATENTS).bfloat16()
    writer(tmp_path, codec="bfloat16").write("train", IDS, latents)
    for number, clip in enumerate(LatentCache(tmp_path)):
        assert np.array_equal(clip.latents, latents[number].float().numpy())


class Stops(RuntimeError):
    pass


def stopping(after: int) -> Iterator[np.ndarray]:
    yield from LATENTS[:after]
    raise Stops


@pytest.mark.parametrize("after", [0, 2, 3, 7, 10])
def test_stopped_then_written_again_equals_written_once(tmp_path: Path, after: int) -> None:
    writer(tmp_path / "once").write("train", IDS, LATENTS)
    for latents in (LATENTS, iter(LATENTS)):
        folder = tmp_path / type(latents).__name__
        with pytest.raises(Stops):
            writer(folder).write("train", IDS, stopping(after))
        assert len(list(folder.glob("commits/*"))) == after // 3
        assert not list(folder.rglob("*.tmp"))
        writer(folder).write("train", IDS, latents)
        assert tree(folder) == tree(tmp_path / "once")


def test_second_call_reads_nothing_and_touches_nothing(tmp_path: Path) -> None:
    writer(tmp_path, codec="int8").write("train", IDS, LATENTS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    class Never:
        def __getitem__(self, number: int) -> np.ndarray:
            raise AssertionError("read again")

    assert writer(tmp_path, codec="int8").write("train", IDS, Never()) == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_splits_come_one_after_the_other(tmp_path: Path) -> None:
    new = writer(tmp_path, codec="int8", seed=0)
    with pytest.raises(CacheError, match='write "train" first'):
        new.write("val", ["v-0"], LATENTS[:1])
    new.write("train", IDS, LATENTS)
    new.write("val", ["v-0", "v-1"], LATENTS[:2])
    assert LatentCache(tmp_path).splits == ("train", "val") and LatentCache(tmp_path).clips("val") == 2
    with pytest.raises(CacheError, match="clip clip-0: the id is there twice"):
        new.write("test", ["clip-0"], LATENTS[:1])


def test_leak_rule_is_the_callers_to_lift(tmp_path: Path) -> None:
    for context, leaks in (("full", True), ("step", False), ([1, 1, 3, 3], False)):
        folder = tmp_path / str(context)
        writer(folder, context=context).write("train", IDS, LATENTS)
        cache = LatentCache(folder)
        if leaks:
            with pytest.raises(LeakError):
                LatentLoader(cache, batch_size=2, context_steps=2)
        else:
            assert not LatentLoader(cache, batch_size=2, context_steps=2).leaks
    with pytest.raises(CacheError, match="context 'some'"):
        writer(tmp_path, context="some")
    with pytest.raises(CacheError, match="seen_until"):
        writer(tmp_path / "short", context=[0, 1]).write("train", IDS, LATENTS)


def test_failures_are_recorded_and_left_out(tmp_path: Path) -> None:
    class Files:
        def __getitem__(self, number: int) -> np.ndarray:
            if number == 4:
                raise DataError("clip-4.npy: cut short")
            return LATENTS[number] * (np.nan if number == 7 else 1)

    seen: list[str | None] = []
    failures = writer(tmp_path).write(
        "train", IDS, Files(), lambda failure: seen.append(failure.clip_id if failure else None)
    )
    assert [(failure.clip_id, failure.stage) for failure in failures] == [("clip-4", "read"), ("clip-7", "encode")]
    assert LatentCache(tmp_path).failures() == failures
    assert len(seen) == CLIPS and [name for name in seen if name] == ["clip-4", "clip-7"]
    assert len(LatentCache(tmp_path)) == CLIPS - 2


def test_metadata_is_in_the_clips_json(tmp_path: Path) -> None:
    import json
    import tarfile

    writer(tmp_path).write("train", [ClipInfo("a-0", metadata={"camera": 2})], LATENTS[:1])
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        content = json.load(tar.extractfile("a-0.json"))
    assert content["metadata"] == {"camera": 2} and content["decoder"] == "elsewhere"
    assert read_plan(tmp_path)["video"].tolist() == ["a-0"]


def test_mistakes_are_clear(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="10 latents for 11 train clips"):
        writer(tmp_path).write("train", IDS, LATENTS[:10])
    with pytest.raises(CacheError, match="ended at clip number 10"):
        writer(tmp_path / "a").write("train", IDS, iter(LATENTS[:10]))
    with pytest.raises(CacheError, match="more latents than clips"):
        writer(tmp_path / "b").write("train", IDS[:10], iter(LATENTS))
    with pytest.raises(CacheError, match="leave out seed"):
        writer(tmp_path, seed=0).write("train", IDS, iter(LATENTS))
    with pytest.raises(CacheError, match=r"latents of \(4, 2, 3, 7\), the spec says \(4, 2, 3, 8\)"):
        writer(tmp_path / "c").write("train", IDS, LATENTS[..., :7])
    with pytest.raises(CacheError, match="codec: the writer sets this itself"):
        writer(tmp_path, spec={"codec": "mine"})
    writer(tmp_path / "d").write("train", IDS, LATENTS)
    with pytest.raises(SpecMismatch, match='encoder: cache has "mine", this run has "yours"'):
        writer(tmp_path / "d", spec={"encoder": "yours"}).write("train", IDS, LATENTS)
    with pytest.raises(CacheError, match="1 clips removed, such as clip-10"):
        writer(tmp_path / "d").write("train", IDS[:10], LATENTS[:10])
    assert read_spec(tmp_path / "d").hard["encoder"] == "mine"
