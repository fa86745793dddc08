"""Audits, baselines and probes as a user runs them, over caches of every context mode."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import ENCODER
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoConfig, AutoModel

from flcache import evaluation
from flcache.cache import LatentCache
from flcache.config import load_config
from flcache.encoder import EncoderSource, LatentVideoModel, load_encoder
from flcache.errors import CacheError, ConfigError, DataError, LeakError, SpecMismatch
from flcache.evaluation import copy_last
from flcache.pipelines import audit, baselines, encode, evaluate, probe, train
from flcache.pipelines.setup.model import build_world_model
from flcache.pipelines.setup.source import Reading, known_videos, open_source


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("overrides", "seen_until", "boundary"),
    [
        ([], [0, 1, 2, 3], 2),
        (["encode.repeat_frames=true", "clip.frames=5"], [0, 1, 2, 3, 4], 2),
        (["encode.context=window", "encode.window=2"], [1, 1, 3, 3], 2),
        (["encode.context=prefix", "encode.prefix_steps=1"], [0, 3, 3, 3], 1),
    ],
)
def test_every_honest_mode_encodes_trains_evaluates_and_is_proven_to_be_honest(
    encoded: Path,
    tmp_path: Path,
    overrides: list[str],
    seen_until: list[int],
    boundary: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache_dir = [f"cache.dir={tmp_path}/cache"] if overrides else []
    config = load_config(encoded, [*overrides, *cache_dir, f"training.dir={tmp_path}/training"])
    encode.run(config)
    cache = LatentCache(str(config.cache.dir), "val")
    assert list(cache[0].seen_until) == list(cache.seen_until) == seen_until
    capsys.readouterr()
    audit.run(cache.path, config, clips=3, as_json=True)
    found = printed(capsys)
    assert found["ok"] is True and found["legal"] is True and found["boundary"] == boundary
    assert found["clips"] == found["contexts_bit_identical"] == 3 and found["contexts_moved_by"] == 0
    assert found["targets_moved_by"] > 0.01 and found["distance_to_cache"] < 1e-4
    train.run(config)
    evaluate.run(config, as_json=True)
    rows = printed(capsys)["horizons"]
    assert len(rows) == len(seen_until) - boundary
    assert set(rows[0]["skill"]) == {"copy_last", "mean_of_context", "linear", "dataset_mean", "ridge"}


def test_full_is_shown_to_move_and_by_how_much(encoded_jointly: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(encoded_jointly)
    capsys.readouterr()
    audit.run(Path(str(config.cache.dir)), config, clips=2, as_json=True)
    found = printed(capsys)
    assert found["ok"] is True and found["legal"] is False and found["contexts_bit_identical"] == 0
    assert found["contexts_moved_by"] > 1e-4
    audit.run(Path(str(config.cache.dir)), config, clips=2)
    assert "it has seen the future" in capsys.readouterr().out


def test_a_cache_that_claims_too_much_is_caught(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder whose steps see everything, in a cache that says they do not."""
    config = load_config(config_file, ["encode.context=full"])
    claim = [0, 1, 2, 3]
    monkeypatch.setattr("flcache.encoder.context.seen_until", lambda rule, steps: claim)
    encode.run(config)
    with pytest.raises(LeakError, match=r"the context of clip .* moved by .* step 2 on changed"):
        audit.run(Path(str(config.cache.dir)), config, clips=2)


def test_latents_of_other_videos_are_caught(encoded: Path, videos: Path, tmp_path: Path) -> None:
    """The cache is whole and its spec is right, but the videos have changed since."""
    config = load_config(encoded)
    paths = sorted(videos.rglob("*.mp4"))
    for path, other in zip(paths, reversed(paths), strict=True):
        copy = tmp_path / "other" / path.relative_to(videos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(other.read_bytes())
    moved = load_config(encoded, [f"dataset.root={tmp_path / 'other'}"])
    with pytest.raises(CacheError, match="away from what the encoder gives now"):
        audit.run(Path(str(config.cache.dir)), moved, clips=4)
    gone = load_config(encoded, [f"dataset.root={tmp_path / 'nowhere'}"])
    with pytest.raises(DataError, match="no such file"):
        audit.run(Path(str(config.cache.dir)), gone, clips=4)


def test_audit_with_another_configuration_is_refused(encoded: Path) -> None:
    config = load_config(encoded, ["encoder.seed=1"])
    with pytest.raises(SpecMismatch, match=r"does not make these latents: encoder\.weights"):
        audit.run(Path(str(config.cache.dir)), config, clips=2)


def test_settings_that_do_not_belong_together_are_errors(encoded: Path) -> None:
    for override, message in (("encode.window=2", "encode.window"), ("encode.prefix_steps=1", "encode.prefix_steps")):
        with pytest.raises(ConfigError, match=message):
            load_config(encoded, [override])


def test_baselines_need_no_training(encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(encoded, [f"training.dir={tmp_path}/none"])
    baselines.run(config, as_json=True)
    rows = printed(capsys)["horizons"]
    assert [row["horizon"] for row in rows] == [1, 2] and not (tmp_path / "none").exists()
    for row in rows:
        assert row["skill"]["copy_last"] == 0 and row["error"] == row["baselines"]["copy_last"]["error"]
        assert len(row["baselines"]["ridge"]["skill_over_copy_last_interval"]) == 2
    baselines.run(load_config(encoded, ["training.source=videos", "evaluation.baseline_clips=8"]), as_json=True)
    live = printed(capsys)["horizons"]
    assert live[0]["error"] == pytest.approx(rows[0]["error"], rel=1e-4)


def test_the_predictor_of_the_encoders_own_checkpoint_is_a_baseline(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"encoder.name={saved_checkpoint(tmp_path / 'hub')}", "evaluation.baseline_clips=8"]
    encode.run(load_config(config_file, overrides))
    scores = {}
    for name, override in (("cache", "source=cache"), ("videos", "source=videos"), ("keep", "source=cache")):
        capsys.readouterr()
        keep = ["encode.keep.pool=true", f"cache.dir={tmp_path}/kept"] if name == "keep" else []
        config = load_config(config_file, [*overrides, f"training.{override}", *keep])
        if keep:
            encode.run(config)
            capsys.readouterr()
        baselines.run(config, as_json=True)
        scores[name] = [row["baselines"].get("own_predictor", {}).get("error") for row in printed(capsys)["horizons"]]
    assert scores["cache"] == pytest.approx(scores["videos"], rel=1e-3) and len(scores["cache"]) == 2
    assert scores["keep"] == [None, None]
    baselines.run(load_config(config_file, [*overrides, "evaluation.own_predictor=false"]), as_json=True)
    assert "own_predictor" not in printed(capsys)["horizons"][0]["baselines"]
    elsewhere = f"encoder.name={saved_checkpoint(tmp_path / 'other', seed=1)}"
    for name, reason in ((elsewhere, "has other weights"), ("encoder.name=gone", '"gone" cannot be loaded')):
        baselines.run(load_config(config_file, [*overrides, name]), as_json=True)
        said = capsys.readouterr()
        assert "own_predictor" not in json.loads(said.out.splitlines()[-1])["horizons"][0]["baselines"]
        assert "without the baseline own_predictor" in said.err and reason in said.err


def saved_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A V-JEPA 2 with its predictor, as the hub would have it."""
    source = EncoderSource(architecture=ENCODER, seed=seed)
    load_encoder(source).processor.save_pretrained(folder)
    torch.manual_seed(seed)
    AutoModel.from_config(AutoConfig.for_model(**ENCODER)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["causal", "flow_matching"])
def test_probe_of_a_trained_predictor(
    encoded: Path, trained: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = ["predictor.kind=flow_matching", "training.loss=l2"] if kind == "flow_matching" else []
    config = load_config(encoded, [f"training.dir={tmp_path}", "probe.epochs=2", "evaluation.samples=2", *flow])
    if flow:
        train.run(config)
    else:
        shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    probe.run(config, as_json=True)
    found = printed(capsys)
    assert found == json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    assert found["clips"] == 6 and found["classes"] > 1 and found["leak"] is False
    for kinds in found["probes"].values():
        assert set(kinds) == {"true", "predicted", "copied"}
        assert all(0 <= value["accuracy"] <= 1 and np.isfinite(value["interval"]).all() for value in kinds.values())
    evaluate.run(config, as_json=True)
    samples = [row.get("samples") for row in printed(capsys)["horizons"]]
    if kind == "causal":
        assert samples == [None, None]
    else:
        assert all(row["samples"] == 2 and row["best"] > 0 and row["diversity"] > 0 for row in samples)
        evaluate.run(config)
        assert "samples a clip" in capsys.readouterr().out
    probe.run(config)
    assert "attentive" in capsys.readouterr().out


def test_a_probe_builds_no_graph_of_a_trainable_encoder(encoded: Path, tmp_path: Path) -> None:
    """Neither of its two copies is asked for gradients, for the one batch of training clips and the one of tests."""
    config = load_config(
        encoded, [f"training.dir={tmp_path}", "probe.epochs=1", "training.source=videos", "encoder_trainable=true"]
    )
    train.run(config)
    asked: list[bool] = []
    hook = register_module_forward_hook(
        lambda module, *_: asked.append(torch.is_grad_enabled()) if isinstance(module, LatentVideoModel) else None
    )
    try:
        probe.run(config)
    finally:
        hook.remove()
    assert len(asked) == 4 and not any(asked)


def test_baselines_end_to_end_cost_what_they_cost_for_the_targets_encoder_alone(encoded: Path, tmp_path: Path) -> None:
    """Real encoders: the online one has moved on from the moving average that makes the targets."""
    config = load_config(encoded, [f"training.dir={tmp_path}", "training.source=videos", "encoder_trainable=true"])
    with open_source(config, Reading("val", 6, shuffle=False), device="cpu") as source:
        model = build_world_model(config, source)
        (videos,) = source.batches
        still = replace(videos, frames=tuple(clip[:1].expand_as(clip) for clip in videos.frames))
        assert model.encoder is not None
        with torch.no_grad():
            for weight in model.encoder.parameters():
                weight += 0.2 * weight.std() * torch.randn_like(weight) if weight.numel() > 1 else 0.0
            moving, frozen = model.to_latents(videos), model.to_latents(still)
        options: dict[str, Any] = {"seen_until": source.seen_until, "fingerprint": ""}
    alone = evaluation.evaluate(copy_last, [replace(moving, latents=moving.targets)], **options)
    apart = evaluation.evaluate(copy_last, [moving], **options)
    variance = apart.target_variance
    assert variance is not None and alone.target_variance is None
    for one, other in zip(alone.horizons, apart.horizons, strict=True):
        expected = one.baselines["copy_last"].error / variance
        assert other.baselines["copy_last"].error == pytest.approx(expected, rel=1e-5)
        assert abs(other.prediction.error / expected - 1) > 0.05, "what copying the online encoder's context costs"
    for horizon in evaluation.evaluate(copy_last, [frozen], **options).horizons:
        assert horizon.baselines["copy_last"].error < 1e-9 < 1e-4 < horizon.prediction.error


def test_a_cache_knows_the_videos_of_its_clips(encoded: Path) -> None:
    found = known_videos(load_config(encoded), "val")
    assert found is not None and len(found) == 6
    assert all(clip_id == f"{video}-0" for clip_id, video in found.items())
    assert known_videos(load_config(encoded, ["training.source=videos"]), "val") is None


def test_a_cache_without_clips_is_not_audited(config_file: Path) -> None:
    config = load_config(config_file)
    encode.run(config, shards=(6, 7))  # of 5 shards none
    with pytest.raises(DataError, match="holds no clips to audit; see"):
        audit.run(Path(str(config.cache.dir)), config, clips=3)
