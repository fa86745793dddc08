"""Caches and checkpoints whose specs stated only some fields of their encoder: what recomputes latents accepts them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from flcache.cache import LatentCache, create_or_check
from flcache.config import Config, load_config
from flcache.errors import CacheError, SpecMismatch, TrainingError
from flcache.pipelines import audit, encode, evaluate, export, predict, repair, train
from flcache.pipelines.setup.encoder import earlier_forms
from flcache.predictor import load_predictor
from flcache.sealed import sealed

STORED = Path(__file__).parent.parent / "fixtures" / "b98e9e3"


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stored folder, as the current one: its configuration has relative paths."""
    folder = tmp_path / "earlier"
    shutil.copytree(STORED, folder)
    monkeypatch.chdir(folder)
    return folder


def configured(*overrides: str) -> Config:
    return load_config("config.yaml", overrides)


def recorded(folder: Path) -> str:
    """The fingerprint that the newest checkpoint below `folder` holds."""
    text = sorted(folder.glob("checkpoints/step-*/run.json"))[-1].read_text(encoding="utf-8")
    return str(json.loads(text)["fingerprint"])


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_an_audit_accepts_the_encoder_and_no_other(
    earlier: Path, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(f"cache.dir={codec}", f"cache.codec={codec}")
    audit.run(earlier / codec, config, clips=2, as_json=True)
    assert json.loads(capsys.readouterr().out)["fingerprint"] == LatentCache(earlier / codec).fingerprint
    other = configured(f"cache.codec={codec}", "encoder.architecture.hidden_act=relu")
    with pytest.raises(SpecMismatch, match=r"architecture\.hidden_act: cache has .gelu., this run has .relu."):
        audit.run(earlier / codec, other, clips=2)


def test_a_damaged_spec_is_repaired_in_its_own_form(earlier: Path) -> None:
    path, fingerprint = earlier / "float16" / "spec.json", LatentCache(earlier / "float16").fingerprint
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(CacheError, match="another spec than the cache was made with"):
        repair.run(earlier / "float16", configured("encoder.seed=7"))
    repair.run(earlier / "float16", configured())
    assert LatentCache(earlier / "float16").fingerprint == fingerprint
    assert json.loads(path.read_bytes())["spec"] == json.loads(whole)["spec"]


def test_a_damaged_spec_with_a_calibration_is_too(earlier: Path) -> None:
    """Calibrated on this machine, whose last bits the stored cache does not have."""
    encode.run(configured("cache.dir=today", "cache.codec=int8"))
    create_or_check(earlier / "first", earlier_forms(LatentCache(earlier / "today").spec.hard)[-1], {})
    config = configured("cache.dir=first", "cache.codec=int8")
    encode.run(config)
    fingerprint, path = LatentCache(earlier / "first").fingerprint, earlier / "first" / "spec.json"
    assert fingerprint != LatentCache(earlier / "today").fingerprint
    path.write_bytes(path.read_bytes()[:-9])
    repair.run(earlier / "first", config)
    assert LatentCache(earlier / "first").fingerprint == fingerprint


@pytest.mark.parametrize("cache", ["float16", "null"])
def test_a_checkpoint_goes_on_from_videos(earlier: Path, cache: str) -> None:
    """With the earlier cache at hand, and with none: the checkpoint holds a fingerprint and no fields."""
    fingerprint = recorded(earlier / "training")
    videos = ["training.source=videos", f"cache.dir={cache}"]
    evaluate.run(configured(*videos))
    found = json.loads((earlier / "training" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["fingerprint"] == fingerprint
    live = ["training.dir=live", *videos]
    train.run(configured(*live))
    assert (recorded(earlier / "live") == fingerprint) == (cache == "float16")
    run_json = sorted(earlier.glob("live/checkpoints/step-*/run.json"))[-1]
    record = json.loads(run_json.read_text(encoding="utf-8")) | {"fingerprint": fingerprint}
    del record["xxh3_64"]
    run_json.write_text(sealed(record), encoding="utf-8")
    with pytest.raises(TrainingError, match="fingerprint was"):
        train.run(configured("training.steps=6", "encoder.architecture.layer_norm_eps=0.1", *live), resume=True)
    train.run(configured("training.steps=6", *live), resume=True)
    assert recorded(earlier / "live") == fingerprint and len(list(earlier.glob("live/checkpoints/step-*"))) == 2


def test_a_checkpoint_is_evaluated_on_a_cache_encoded_anew(earlier: Path) -> None:
    stored = LatentCache(earlier / "float16")
    encode.run(configured("cache.dir=anew"))
    assert LatentCache(earlier / "anew").fingerprint != stored.fingerprint
    first = torch.from_numpy(stored[0].latents)
    torch.testing.assert_close(torch.from_numpy(LatentCache(earlier / "anew")[0].latents), first, rtol=1e-2, atol=1e-2)
    evaluate.run(configured("cache.dir=anew"))
    encode.run(configured("cache.dir=relu", "encoder.architecture.hidden_act=relu"))
    with pytest.raises(TrainingError, match="trained on latents"):
        evaluate.run(configured("cache.dir=relu"))


@pytest.mark.parametrize("source", ["cache", "videos"])
def test_a_checkpoint_is_exported_and_predicts(earlier: Path, source: str) -> None:
    export.run(Path("training"), Path("model"), [f"training.source={source}", "cache.dir=float16"])
    assert load_predictor("model/predictor").card.fingerprint == recorded(earlier / "training")
    (video,) = list(earlier.glob("videos/*/v0000007a82*.mp4"))
    predict.run([video], Path("model"), Path("predictions"), device="cpu")
    assert Path("predictions", f"{video.stem}.npz").exists()
