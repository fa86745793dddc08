"""What is kept of the latents is their means and components; how much of them that is, is measured and said."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_cache import clip_table, encoded_clip, hard_spec

from flcache.cache import (
    Calibrator,
    LatentCache,
    ShardWriter,
    assign_shards,
    create_or_check,
    make_spec,
    reduced_shape,
    reduction_fields,
    summary,
    write_plan,
)
from flcache.errors import CacheError, SpecMismatch

FULL = T, H, W, D = (4, 4, 6, 24)
RANK = 5


def smooth_latents(seed: int, noise: float = 0.01) -> np.ndarray:
    """(T, H, W, D) alike in 2 x 2 patches, of `RANK` components, far from the origin, one channel much larger."""
    mixing = np.random.default_rng(0).normal(size=(RANK, D))
    generator = np.random.default_rng(seed)
    factors = generator.normal(size=(T, H // 2, W // 2, RANK)).repeat(2, axis=1).repeat(2, axis=2)
    latents = factors @ mixing + 3 + noise * generator.normal(size=FULL)
    latents[..., 0] *= 20
    return latents.astype(np.float32)


def hard_fields(codec: str, pool: bool, pca: int | None) -> dict[str, Any]:
    keep = reduction_fields(FULL, pool=pool, pca=pca)
    shape = reduced_shape(keep, "keep") if keep else FULL
    return hard_spec(codec, shape) | ({"keep": keep} if keep else {})


def calibration(hard: dict[str, Any], clips: int = 8) -> dict[str, Any]:
    calibrator = Calibrator(hard)
    for seed in range(clips):
        calibrator.add(smooth_latents(seed), T)
    return calibrator.fields()


def make_cache(cache_dir: Path, codec: str, pool: bool, pca: int | None, clips: int = 8) -> LatentCache:
    hard = hard_fields(codec, pool, pca)
    spec, _ = create_or_check(cache_dir, hard, {}, lambda: calibration(hard))
    plan = write_plan(cache_dir, assign_shards(clip_table(clips), "train", clip_bytes=1, shard_bytes=clips, seed=0))
    with ShardWriter(cache_dir, "train", 0, spec) as writer:
        for row in plan.itertuples():
            clip = encoded_clip(row)
            writer.add(type(clip)(**vars(clip) | {"latents": smooth_latents(row.slot)}))
        writer.commit()
    return LatentCache(cache_dir)


@pytest.mark.parametrize("codec", ["float16", "int8"])
@pytest.mark.parametrize(("pool", "pca"), [(True, None), (False, RANK), (True, RANK), (False, 2)])
def test_what_is_kept_is_as_much_as_is_said(tmp_path: Path, codec: str, pool: bool, pca: int | None) -> None:
    cache = make_cache(tmp_path, codec, pool, pca)
    assert cache.latent_shape == (T, H // (1 + pool), W // (1 + pool), pca or D)
    found = summary(tmp_path)
    enough = pca in (None, RANK)
    for clip in cache:
        original = smooth_latents(cache.ids.index(clip.clip_id))
        restored = cache.spec.reduction.reconstruct(clip.latents.astype(np.float32))
        assert restored.shape == FULL
        error = np.linalg.norm(restored - original) / np.linalg.norm(original)
        assert error < 0.02 if enough else 0.1 < error < 0.9
    assert found["keep"]["shape"] == list(FULL)
    assert found["fidelity"]["codec"]["relative_l2"] < 0.01
    assert found["fidelity"]["codec"]["vectors"] == 8 * np.prod(cache.latent_shape[:-1])
    assert found["fidelity"]["keep"]["vectors"] == 8 * T * H * W
    assert (found["fidelity"]["keep"]["min_cosine"] > 0.999) == enough
    if pca:
        assert (found["keep"]["variance_kept"] > 0.999) == enough
    if codec == "int8":
        stored = np.concatenate([clip.latents.reshape(-1, cache.latent_shape[-1]) for clip in cache])
        np.testing.assert_allclose(stored.std(0), cache.statistics().std.numpy(), rtol=0.05)


def test_pooling_is_the_mean_of_patches() -> None:
    latents = np.random.default_rng(0).normal(size=FULL).astype(np.float32)
    reduction = make_spec(hard_fields("float16", True, None)).reduction
    expected = np.mean([latents[:, row::2, column::2] for row in (0, 1) for column in (0, 1)], axis=0)
    np.testing.assert_allclose(reduction.apply(latents), expected, rtol=1e-5, atol=1e-6)


def test_components_are_orthonormal_sorted_and_repeatable() -> None:
    hard = hard_fields("float16", True, RANK)
    fields = calibration(hard)
    assert fields == calibration(hard)
    basis = make_spec(hard | {"calibration": fields}).reduction.components.basis
    np.testing.assert_allclose(basis.T @ basis, np.eye(RANK), atol=1e-5)
    assert fields["std"] == sorted(fields["std"], reverse=True)
    assert all(basis[np.abs(basis).argmax(0), range(RANK)] > 0)


def test_existing_cache_keeps_its_calibration(tmp_path: Path) -> None:
    hard = hard_fields("int8", False, RANK)
    first, _ = create_or_check(tmp_path, hard, {}, lambda: calibration(hard))

    def never() -> dict[str, Any]:
        raise AssertionError("calibrated again")

    again, _ = create_or_check(tmp_path, hard, {}, never)
    assert again.fingerprint == first.fingerprint
    other = hard_fields("float16", False, 3)
    with pytest.raises(SpecMismatch) as caught:
        create_or_check(tmp_path, other, {}, never)
    assert 'codec: cache has "int8", this run has "float16"' in str(caught.value)
    assert "keep.pca: cache has 5, this run has 3" in str(caught.value) and "calibration" not in str(caught.value)


def test_other_calibration_is_another_fingerprint() -> None:
    hard = hard_fields("int8", False, None)
    prints = {make_spec(hard | {"calibration": calibration(hard, clips)}).fingerprint for clips in (5, 6)}
    assert len(prints) == 2


def test_values_that_are_not_finite_are_no_part_of_a_calibration() -> None:
    hard = hard_fields("int8", False, None)
    calibrator = Calibrator(hard)
    calibrator.add(np.full(FULL, np.nan, np.float32), T)
    with pytest.raises(CacheError, match="no training clip"):
        calibrator.fields()
    calibrator.add(smooth_latents(0), T)
    assert calibrator.fields()["clips"] == 1


@pytest.mark.parametrize(
    ("shape", "pool", "pca", "message"),
    [
        ((4, 3, 4, 8), True, None, "even patch grid, this one is 3 x 4"),
        (FULL, False, 25, "from 1 to the 24 channels"),
        (FULL, False, 0, "from 1 to the 24 channels"),
    ],
)
def test_what_cannot_be_kept_is_refused(shape: tuple[int, ...], pool: bool, pca: int, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        reduction_fields(shape, pool=pool, pca=pca)


BASIS = base64.b64encode(np.zeros((D, RANK), "<f4").tobytes()).decode()
CONSTANTS = {"mean": [0.0] * D, "std": [1.0] * D}
KEPT = {"mean": [0.0] * RANK, "std": [1.0] * RANK}


@pytest.mark.parametrize(
    "calibration",
    [
        None,
        [],
        KEPT,
        KEPT | {"pca": CONSTANTS},
        KEPT | {"pca": CONSTANTS | {"basis": BASIS[:-8]}},
        KEPT | {"pca": CONSTANTS | {"basis": BASIS + "!"}},
        KEPT | {"pca": CONSTANTS | {"basis": 7}},
        KEPT | {"pca": {"mean": [0.0] * D, "std": [0.0] * D, "basis": BASIS}},
        KEPT | {"pca": {"mean": [0.0] * D, "std": [1e300] * D, "basis": BASIS}},
        KEPT | {"pca": {"mean": ["0"] * D, "std": [1.0] * D, "basis": BASIS}},
        {"mean": [0.0] * D, "std": [1.0] * D, "pca": CONSTANTS | {"basis": BASIS}},
    ],
)
def test_calibration_that_no_reader_could_use_is_refused(calibration: Any) -> None:
    hard = hard_fields("int8", False, RANK)
    with pytest.raises(CacheError, match="calibration"):
        make_spec(hard | {"calibration": calibration})
    assert make_spec(hard | {"calibration": KEPT | {"pca": CONSTANTS | {"basis": BASIS}}}).reduction


@pytest.mark.parametrize(
    "keep",
    [
        7,
        {},
        {"shape": [4, 4], "pool": 2, "pca": None},
        {"shape": [4, 4, 4, 24], "pool": 2},
        {"shape": list(FULL), "pool": 3, "pca": None},
    ],
)
def test_keep_that_no_reader_could_use_is_refused(keep: Any) -> None:
    with pytest.raises(CacheError, match="keep"):
        make_spec(hard_fields("float16", True, None) | {"keep": keep})
    with pytest.raises(CacheError, match=r"layout\.shape"):
        make_spec(hard_fields("float16", True, None) | {"layout": {"shape": list(FULL)}})
