"""Every codec holds what it says, as closely as it says, and hands it to training standardised."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cache import hard_spec, make_cache, plan_cache, write_shard

from flcache.batch import ChannelStatistics
from flcache.cache import CODECS, LatentCache, ValueRangeError, get_codec, make_spec, read_plan, summary
from flcache.cache.codecs.fidelity import Fidelity, measure, merge
from flcache.cache.format.record import parse_fields
from flcache.cache.write.calibration import Calibrator
from flcache.errors import CacheError

SHAPE = T, H, W, D = (5, 4, 4, 48)
STEPS = slice(1, 4)


def outlier_latents(num_clips: int = 6, seed: int = 0) -> np.ndarray:
    """(B, T, H, W, D) as of a pretrained ViT: some channels 20 times larger, every one with a mean of its own."""
    generator = np.random.default_rng(seed)
    scale, mean = generator.uniform(0.2, 1.0, D), generator.normal(size=D)
    scale[:3] *= 20
    return (generator.normal(size=(num_clips, *SHAPE)) * scale + mean).astype(np.float32)


def calibrated(latents: np.ndarray, **fields: object) -> dict[str, object]:
    hard = hard_spec("int8", SHAPE) | fields
    calibrator = Calibrator(hard)
    for clip in latents:
        calibrator.add(clip, T)
    return hard | {"calibration": calibrator.fields()}


def spec_codec(name: str, latents: np.ndarray):
    return make_spec(calibrated(latents) | {"codec": name}).codec


def statistics_of(latents: np.ndarray) -> ChannelStatistics:
    vectors = latents.reshape(-1, D)
    return ChannelStatistics(torch.from_numpy(vectors.mean(0)), torch.from_numpy(vectors.std(0)))


def worst_relative_error(name: str) -> float:
    return {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 0.01}[name]


@pytest.mark.parametrize("name", sorted(CODECS))
def test_decoded_is_as_close_as_the_codec_promises(name: str) -> None:
    latents = outlier_latents()
    codec = spec_codec(name, latents)
    for clip in latents:
        payloads = codec.encode(clip)
        assert [(payload.dtype, payload.shape) for payload in payloads] == [
            (layout.dtype, layout.shape) for layout in codec.payloads(SHAPE)
        ]
        assert sum(payload.nbytes for payload in payloads) == codec.clip_bytes(SHAPE)
        found = measure(clip, codec.decode(payloads).astype(np.float32))
        assert found.relative_l2 <= worst_relative_error(name) and found.min_cosine >= 0.999
        assert codec.decode(payloads).dtype == codec.latents_dtype(SHAPE)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_standardised_equals_decoded_then_standardised(name: str) -> None:
    latents = outlier_latents()
    codec = spec_codec(name, latents)
    encoded = [codec.encode(clip) for clip in latents]
    buffers = [torch.from_numpy(np.stack(payload)) for payload in zip(*encoded, strict=True)]
    plain = torch.from_numpy(np.stack([codec.decode(payloads) for payloads in encoded])).float()
    own = ChannelStatistics(*(torch.tensor(calibrated(latents)["calibration"][key]) for key in ("mean", "std")))
    for statistics in (own, statistics_of(outlier_latents(2, seed=1)), None):
        expected = statistics.standardise(plain) if statistics else plain
        out = torch.full((len(latents), *SHAPE), torch.nan)
        codec.standardise_into(buffers, statistics, out)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        part = torch.full((4, 3, *SHAPE[1:]), torch.nan)
        codec.standardise_into([buffer[1:5, STEPS].contiguous() for buffer in buffers], statistics, part)
        assert torch.equal(part, out[1:5, STEPS])


def test_more_values_than_a_block() -> None:
    codec = get_codec("int8")
    latents = np.random.default_rng(0).normal(size=(3, 40, 3000, 5)).astype(np.float32)
    buffers = [torch.from_numpy(payload)[None] for payload in codec.encode(latents)]
    out = torch.empty(1, *latents.shape)
    codec.standardise_into(buffers, None, out)
    torch.testing.assert_close(out[0], torch.from_numpy(latents), rtol=0, atol=0.02)


def test_bfloat16_is_torchs() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, size=200_000, dtype=np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0, 0x80000000, 0x00000001, 0x7F7F7FFF], dtype=np.uint32)
    values = np.concatenate([bits, ties]).view(np.float32)
    rounded = torch.from_numpy(values).bfloat16()
    values, rounded = values[rounded.isfinite().numpy()], rounded[rounded.isfinite()]
    stored = get_codec("bfloat16").encode(values.reshape(1, 1, 1, -1))[0]
    assert np.array_equal(stored.ravel(), rounded.view(torch.uint16).numpy())
    assert np.array_equal(get_codec("bfloat16").decode([stored]).ravel(), rounded.float().numpy())


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0x7FFFFFFF, 3.4e38])
def test_values_that_cannot_be_held_are_named(name: str, value: float) -> None:
    latents = np.zeros(SHAPE, np.float32)
    latents[2, 0, 1, 5] = np.uint32(value).view(np.float32) if isinstance(value, int) else value
    if name == "float32" and value == 3.4e38:
        return
    with pytest.raises(ValueRangeError, match="step 2, channel 5 is"):
        spec_codec(name, outlier_latents()).encode(latents)


def test_int8_uses_every_channel_alike_and_holds_odd_vectors() -> None:
    latents = outlier_latents()
    plain, standardised = get_codec("int8"), spec_codec("int8", latents)
    quiet = latents[0][..., 3:] - latents[0][..., 3:].mean((0, 1, 2))  # all but the large channels
    errors = [
        np.abs(codec.decode(codec.encode(latents[0])) - latents[0])[..., 3:].mean() / np.abs(quiet).mean()
        for codec in (plain, standardised)
    ]
    assert errors[1] < 0.01 and 4 * errors[1] < errors[0]
    for odd in (np.zeros(SHAPE), np.full(SHAPE, 1e-3), np.full(SHAPE, 1e-30), np.full(SHAPE, 7e6)):
        payloads = plain.encode(odd.astype(np.float32))
        np.testing.assert_allclose(plain.decode(payloads), odd, rtol=5e-3, atol=1e-6)
        assert np.abs(payloads[0].astype(int)).max() <= 127


def test_fidelity_is_what_numpy_says() -> None:
    generator = np.random.default_rng(0)
    latents = generator.normal(size=SHAPE).astype(np.float32)
    found = (latents + 0.1 * generator.normal(size=SHAPE)).astype(np.float32)
    a, b = latents.reshape(-1, D).astype(np.float64), found.reshape(-1, D).astype(np.float64)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    fidelity = measure(latents, found)
    assert fidelity.vectors == len(a)
    np.testing.assert_allclose(fidelity.relative_l2, np.linalg.norm(b - a) / np.linalg.norm(a), rtol=1e-5)
    np.testing.assert_allclose([fidelity.mean_cosine, fidelity.min_cosine], [cosine.mean(), cosine.min()], rtol=1e-6)
    whole, parts = measure(latents, found), merge(measure(*pair) for pair in zip(latents, found, strict=True))
    np.testing.assert_allclose(list(vars(parts).values()), list(vars(whole).values()), rtol=1e-6)
    assert merge([]) is None
    zeros = np.zeros((2, D), np.float32)
    assert measure(zeros, zeros).min_cosine == 1 and measure(zeros, zeros).relative_l2 == 0
    assert measure(zeros, zeros + 1).min_cosine == 0 and measure(zeros + 1, zeros).min_cosine == 0


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_fidelity_is_in_the_commits_and_the_summary(tmp_path: Path, codec: str) -> None:
    cache = LatentCache(make_cache(tmp_path, codec=codec))
    commit = json.loads((tmp_path / "commits" / "train-000001.json").read_text())
    assert commit["fidelity"]["vectors"] == 5 * 4 * 2 * 2 and commit["keep_fidelity"] is None
    found = summary(tmp_path)["fidelity"]
    assert found["codec"]["vectors"] == len(cache) * 4 * 2 * 2 and found["keep"] is None
    assert found["codec"]["min_cosine"] == min(commit.fidelity.min_cosine for commit in cache.commits)
    assert (found["codec"]["relative_l2"] == 0) == (codec == "float32")
    assert found["codec"]["relative_l2"] <= worst_relative_error(codec)


def test_floor_fails_the_shard_and_leaves_nothing(tmp_path: Path) -> None:
    spec = plan_cache(tmp_path, codec="int8")
    rows = read_plan(tmp_path).query("split == 'train' and shard == 1")
    write_shard(tmp_path, spec, "train", 1, rows, min_cosine=0.99)
    rows = read_plan(tmp_path).query("split == 'train' and shard == 2")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        CacheError, match=r"train-000002\.tar: clip train.*cosine 0\.\d+ .*cache\.min_cosine=0\.9999"
    ) as error:
        write_shard(tmp_path, spec, "train", 2, rows, min_cosine=0.999999)
    assert not isinstance(error.value, ValueRangeError) and "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_int8_cache_is_standardised_with_its_own_constants(tmp_path: Path) -> None:
    spec = make_spec(calibrated(outlier_latents()))
    cache = LatentCache(make_cache(tmp_path, codec="int8"))
    assert cache.spec.hard["calibration"]["clips"] == 22
    assert cache.statistics().mean.tolist() == pytest.approx(cache.spec.hard["calibration"]["mean"])
    assert spec.fingerprint != make_spec(calibrated(outlier_latents(seed=1))).fingerprint
    half = LatentCache(make_cache(tmp_path / "half", codec="float16", shape=(4, 2, 2, 64)))
    eighth = LatentCache(make_cache(tmp_path / "eighth", codec="int8", shape=(4, 2, 2, 64)))
    sizes = [each.spec.codec.clip_bytes(each.latent_shape) for each in (half, eighth)]
    assert sizes[1] / sizes[0] == pytest.approx(0.5 + 1 / 64)


def test_room_loads_no_torch_for_any_codec(tmp_path: Path) -> None:
    program = (
        "import sys, flcache.cache as cache; cache.LatentCache(sys.argv[1])[0]; cache.summary(sys.argv[1]); "
        "assert 'torch' not in sys.modules"
    )
    for codec in ("bfloat16", "int8"):
        subprocess.run([sys.executable, "-c", program, make_cache(tmp_path / codec, codec=codec)], check=True)


@pytest.mark.parametrize("value", [1e300, -1e300, float("inf"), float("nan"), True, "1"])
def test_a_fidelity_that_nothing_has_is_none(value: object) -> None:
    content = asdict(measure(np.ones((3, 4), np.float32), np.ones((3, 4), np.float32)))
    assert parse_fields(Fidelity, content) is not None
    assert parse_fields(Fidelity, content | {"norm": value}) is None
