"""A codec that is registered from outside, the one of docs/codec.md, works wherever a codec does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flcache.cache import (
    CODECS,
    CacheWriter,
    Codec,
    LatentCache,
    LatentLoader,
    Mixture,
    PayloadLayout,
    get_codec,
    register_codec,
    summary,
    verify_cache,
)
from flcache.config import load_config
from flcache.errors import CacheError, ConfigError
from flcache.pipelines import audit, encode, evaluate, train
from flcache.training import read_metrics
from flcache.videos import write_dataset

SHAPE = T, H, W, D = (6, 3, 5, 16)
NUM_CLIPS = 20


@pytest.fixture
def page_codec() -> Iterator[str]:
    """The name of the codec that the page defines, registered for one test."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "codec.md").read_text(encoding="utf-8")
    (code,) = (block for block in page.split("```python\n")[1:] if "@register_codec" in block)
    code = code.split("```")[0]
    assert len(code.splitlines()) < 40
    exec(code, {"__name__": "mine"})
    yield "packed4"
    del CODECS["packed4"]


@pytest.fixture
def cache(page_codec: str, tmp_path: Path) -> LatentCache:
    latents = np.random.default_rng(0).normal(2, 3, (NUM_CLIPS, *SHAPE)).astype(np.float32)
    latents[0, 0, 0, 0] = 0  # a vector without a scale
    writer = CacheWriter(tmp_path / "cache", SHAPE, codec=page_codec, context="step", shard_bytes=4096)
    assert not writer.write("train", [f"clip-{number}" for number in range(NUM_CLIPS)], latents)
    opened = LatentCache(tmp_path / "cache", "train")
    for clip, original in zip(opened, latents, strict=True):
        largest = np.abs(original).max(axis=-1, keepdims=True)
        assert clip.latents.dtype == np.float32 and clip.latents.shape == SHAPE
        assert (np.abs(clip.latents - original) <= largest * (0.5 / 7 + 1e-3)).all()
    return opened


def test_some_steps_and_batches_are_the_steps_of_whole_clips(cache: LatentCache) -> None:
    whole = {clip.clip_id: torch.from_numpy(clip.latents) for clip in cache}
    for number, clip_id in enumerate(cache.ids):
        assert np.array_equal(cache.steps(number, 2, 5).latents, whole[clip_id][2:5])
    statistics = cache.statistics()
    for source in (cache, Mixture([cache, cache], [1, 2])):
        for steps in (None, (1, 4)):
            for standardise in (True, False):
                loader = LatentLoader(source, batch_size=4, context_steps=1, steps=steps, standardise=standardise)
                for batch in loader:
                    stored = torch.stack([whole[clip_id][slice(*(steps or (0, T)))] for clip_id in batch.ids])
                    expected = statistics.standardise(stored) if standardise else stored
                    torch.testing.assert_close(batch.latents, expected, rtol=1e-5, atol=1e-5)
                    assert batch.latents.dtype == torch.float32


def test_it_is_verified_and_summarised(cache: LatentCache) -> None:
    found = summary(cache.path)
    assert found["latents"] == {
        "shape": list(SHAPE),
        "codec": "packed4",
        "dtype": "uint8",
        "clip_bytes": T * H * W * (D // 2 + 2),
    }
    assert 0.01 < found["fidelity"]["codec"]["relative_l2"] < 0.2
    proven = verify_cache(cache.path)
    assert proven.ok and proven.clips == NUM_CLIPS and proven.shards > 1
    tar = cache.path / "shards" / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[int(cache.reader(0).rows["payloads"]["offset"][0, 0]) + 7] ^= 1
    tar.write_bytes(content)
    (damage,) = verify_cache(cache.path).damaged
    assert damage.problem == "its latents are not what was written"


def test_a_cache_whose_codec_is_not_registered_says_what_to_do(cache: LatentCache) -> None:
    codec = CODECS.pop("packed4")
    with pytest.raises(CacheError, match=r"no codec 'packed4'.*register_codec"):
        LatentCache(cache.path)
    register_codec(codec)
    assert len(LatentCache(cache.path)) == NUM_CLIPS


def test_videos_are_encoded_trained_on_evaluated_and_audited(
    page_codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "flcache-demo" / "videos", train_videos=8, val_videos=4, frames=40, size=64)
    settings = [f"cache.codec={page_codec}", "training.steps=4", "training.rollout_steps=2", "training.log_every=1"]
    config = load_config("demo", settings)
    encode.run(config)
    train.run(config)
    first = read_metrics(tmp_path / "flcache-demo" / "training" / "metrics.jsonl")[0]
    assert first["loss"] == first["loss/copy_last"] > 0
    capsys.readouterr()
    evaluate.run(config, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [row["clips"] for row in found["horizons"]] == [4] * 8
    assert found["fingerprint"] == LatentCache("flcache-demo/cache").fingerprint
    audit.run(Path("flcache-demo/cache"), config, clips=2, as_json=True)
    assert json.loads(capsys.readouterr().out)["ok"]


class _Calibrated(Codec):
    """float16 after the calibration's mean is taken away; gives no statistics of its own."""

    name = "centred"
    needs_calibration = True

    def __init__(self, mean: Any = 0.0) -> None:
        self._mean = np.array(mean, np.float32)

    @classmethod
    def from_calibration(cls, calibration: Any) -> _Calibrated:
        return cls(calibration["mean"]) if calibration else cls()

    def payloads(self, shape: tuple[int, ...]) -> tuple[PayloadLayout, ...]:
        return (PayloadLayout("latents", np.dtype("<f2"), shape),)

    def encode(self, latents: Any) -> list[Any]:
        return [(latents - self._mean).astype("<f2")]

    def decode(self, payloads: Any) -> Any:
        return payloads[0].astype(np.float32) + self._mean


@pytest.fixture
def centred(monkeypatch: pytest.MonkeyPatch) -> type[Codec]:
    monkeypatch.setitem(CODECS, "centred", _Calibrated)
    return register_codec(_Calibrated)


def test_a_codec_gets_the_constants_that_it_asks_for(centred: type[Codec], tmp_path: Path) -> None:
    latents = np.random.default_rng(0).normal(100, 1, (NUM_CLIPS, *SHAPE)).astype(np.float32)
    writer = CacheWriter(tmp_path, SHAPE, codec="centred", context="step")
    writer.write("train", [f"clip-{number}" for number in range(NUM_CLIPS)], latents)
    cache = LatentCache(tmp_path, "train")
    assert cache.spec.hard["calibration"]["clips"] == NUM_CLIPS
    for clip, original in zip(cache, latents, strict=True):
        np.testing.assert_allclose(clip.latents, original, atol=0.002)  # float16 alone is off by up to 0.03 at 100
    (batch,) = LatentLoader(cache, batch_size=NUM_CLIPS, context_steps=1, shuffle=False)
    np.testing.assert_allclose(batch.latents.mean((0, 1, 2, 3)), np.zeros(D), atol=1e-3)


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("decode", lambda codec, payloads: payloads[0]),
        ("encode", lambda codec, latents: [latents]),
        ("payloads", lambda codec, shape: (PayloadLayout("latents", np.dtype("<f2"), shape[::-1]),)),
    ],
)
def test_a_codec_that_does_not_do_what_it_says_stores_nothing(
    centred: type[Codec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, wrong: Any
) -> None:
    monkeypatch.setattr(centred, method, wrong)
    writer = CacheWriter(tmp_path, SHAPE, codec="centred", context="step")
    with pytest.raises(CacheError, match=r"codec centred: .* but it says .*; correct _Calibrated"):
        writer.write("train", ["clip"], np.zeros((1, *SHAPE), np.float32))
    assert not list(tmp_path.rglob("*.tar"))


def test_a_name_belongs_to_one_codec_and_configurations_list_the_registered_ones(centred: type[Codec]) -> None:
    other = type("Other", (centred,), {"name": "float16"})
    with pytest.raises(CacheError, match=r"codec 'float16' is .*Float16Codec; choose another name"):
        register_codec(other)
    assert type(get_codec("float16")) is CODECS["float16"] is not other
    assert load_config("demo", ["cache.codec=centred"]).cache.codec == "centred"
    del CODECS["centred"]
    with pytest.raises(ConfigError, match="expected text that is one of float32, float16, bfloat16, int8, got centred"):
        load_config("demo", ["cache.codec=centred"])
    CODECS["centred"] = centred
