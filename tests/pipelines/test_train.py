"""Training and evaluation as a user runs them: resumed == uninterrupted, cached == live, end to end, two processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flcache.cache import LatentCache
from flcache.config import load_config
from flcache.errors import ConfigError, LeakError, TrainingError
from flcache.pipelines import encode, evaluate, train
from flcache.pipelines.setup.model import load_trained
from flcache.pipelines.setup.source import Reading, latent_batches, open_source
from flcache.training import latest_checkpoint, read_metrics

UNFROZEN = [
    "training.source=videos",
    "encoder_trainable=[layer.1, layernorm]",
    "training.encoder_learning_rate=1e-4",
    "training.layer_decay=0.5",
    "encoder.checkpoint_activations=true",
    "training.augment.crop=0.5",
    "training.augment.flip=true",
]

SIGREG = [
    "training.source=videos",
    "encoder_trainable=true",
    "training.target_encoder=online",
    "training.anti_collapse=sigreg",
]


def losses(directory: Path) -> list[tuple[float, float]]:
    """Step and loss of every logged step."""
    return [(line["step"], line["loss"]) for line in read_metrics(directory / "metrics.jsonl")]


def weights(directory: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(directory / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def assert_equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        ["training.source=cache"],
        ["training.source=videos"],
        ["training.rollout_steps=2", "training.horizon_weights=[2,1]", "training.targets=layer_norm"],
        ["predictor.kind=parallel", "predictor.attention=factorised", "predictor.checkpoint_activations=true"],
        ["predictor.kind=cross_attention", "training.loss=cosine"],
        ["predictor.kind=flow_matching", "training.loss=l2"],
        UNFROZEN,
        ["training.ema=0.9"],
        SIGREG,
    ],
    ids=[
        "cache",
        "videos",
        "rollout",
        "parallel",
        "cross_attention",
        "flow_matching",
        "unfrozen",
        "averaged",
        "sigreg",
    ],
)
def test_resumed_equals_uninterrupted(encoded: Path, tmp_path: Path, settings: list[str]) -> None:
    common = [*settings, "training.accumulate=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.run(load_config(encoded, [*common, f"training.dir={whole}"]))
    options = [*common, f"training.dir={parts}"]
    config = load_config(encoded, options)
    schedule_of_six = [*options, "training.checkpoint_every=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flcache.training.loop.Run.save", _die_after_step(4))
        with pytest.raises(KeyboardInterrupt):
            train.run(load_config(encoded, schedule_of_six))
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["step-00000002"]
    train.run(config, resume=True)
    assert losses(parts) == losses(whole)
    assert_equal_weights(weights(parts, 6), weights(whole, 6))
    with pytest.raises(TrainingError, match="continue it with --resume"):
        train.run(config)


def _die_after_step(step: int):  # type: ignore[no-untyped-def]
    """What Ctrl-C does at optimiser step `step`, before its checkpoint is written."""
    from flcache.training.loop import Run

    save = Run.save

    def save_or_die(self: Run, keep: int) -> Path:
        if self.step >= step:
            raise KeyboardInterrupt
        return save(self, keep)

    return save_or_die


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_cached_equals_live(encoded: Path, tmp_path: Path, precision: str) -> None:
    """Precision is that of training: a frozen encoder keeps its own."""
    for source in ("cache", "videos"):
        settings = [f"training.source={source}", f"training.dir={tmp_path / source}", f"training.precision={precision}"]
        train.run(load_config(encoded, settings))
    cached, live = losses(tmp_path / "cache"), losses(tmp_path / "videos")
    assert len(cached) == 6
    for (step, expected), (other, found) in zip(cached, live, strict=True):
        assert step == other and math.isclose(expected, found, rel_tol=1e-5), (cached, live)


def test_step_zero_is_copying_and_the_loss_is_logged_beside_it(trained: Path) -> None:
    first, *others = read_metrics(trained / "metrics.jsonl")
    assert [line["step"] for line in (first, *others)] == [1, 2, 3, 4, 5, 6]
    assert first["loss"] == first["loss/copy_last"] > 0
    assert 0 <= first["data_wait_fraction"] <= 1
    assert list((trained / "tensorboard").iterdir())


@pytest.mark.parametrize("trainable", ["true", "[layer.1, layernorm]"])
def test_end_to_end_trains_the_encoder_against_a_moving_average(
    encoded: Path, tmp_path: Path, trainable: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        f"encoder_trainable={trainable}",
        "training.source=videos",
        "training.ema_decay=0.9",
        f"training.dir={tmp_path}",
    ]
    config = load_config(encoded, overrides)
    train.run(config)
    found, start = weights(tmp_path, 6), weights(tmp_path, 3)
    first = found["encoder.encoder.layer.0.mlp.fc1.weight"]
    last = found["encoder.encoder.layer.1.mlp.fc1.weight"]
    target = found["target_encoder.encoder.layer.1.mlp.fc1.weight"]
    assert not torch.equal(last, start["encoder.encoder.layer.1.mlp.fc1.weight"])
    assert not torch.equal(last, target)
    moved = not torch.equal(first, start["encoder.encoder.layer.0.mlp.fc1.weight"])
    assert moved == (trainable == "true")
    watched = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert watched["latents/deviation"] > 0 and watched["latents/rank"] > 1 and 0 < watched["latents/change"] < 1
    capsys.readouterr()
    evaluate.run(config, as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert [row["clips"] for row in result["horizons"]] == [6, 6]


def test_the_decay_of_the_moving_average_follows_its_schedule(encoded: Path, tmp_path: Path) -> None:
    """From checkpoints of every step: 0.4 rises to 1.0 at the last step, which moves nothing; resumed in between."""
    settings = ["training.source=videos", "encoder_trainable=[layer.1]", f"training.dir={tmp_path}"]
    settings += ["training.ema_decay=0.4", "training.ema_decay_end=1.0", "training.checkpoint_every=1"]
    config = load_config(encoded, [*settings, "training.keep_checkpoints=6"])
    train.run(config)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000006")
    train.run(config, resume=True)
    name = "encoder.encoder.layer.1.mlp.fc1.weight"
    found = [weights(tmp_path, step) for step in range(1, 7)]
    for step, (before, now) in enumerate(pairwise(found), start=2):
        expected = before[f"target_{name}"].lerp(now[name], 1 - (0.4 + 0.6 * step / 6))
        torch.testing.assert_close(now[f"target_{name}"], expected, rtol=1e-6, atol=1e-9)
    assert torch.equal(found[5][f"target_{name}"], found[4][f"target_{name}"])
    assert not torch.equal(found[4][f"target_{name}"], found[3][f"target_{name}"])


def test_an_average_of_weights_is_kept_and_is_what_is_evaluated(encoded: Path, trained: Path, tmp_path: Path) -> None:
    settings = ["training.ema=0.4", "training.checkpoint_every=1", "training.keep_checkpoints=6"]
    config = load_config(encoded, [*settings, f"training.dir={tmp_path}"])
    train.run(config)
    assert losses(tmp_path) == losses(trained), "training itself is as without"
    found = [weights(tmp_path, step) for step in range(1, 7)]
    names = [name for name in found[0] if name.startswith("predictor.")]
    for name in names:
        average = found[0][name.replace("predictor.", "average.", 1)]
        for step, now in enumerate(found[1:], start=2):
            average = average.lerp(now[name], 1 - min(0.4, (1 + step) / (10 + step)))
        assert torch.equal(average, found[-1][name.replace("predictor.", "average.", 1)]), name
    moved = [name for name in names if not torch.equal(found[-1][name], found[-1][f"average.{name[10:]}"])]
    assert moved, "an average of weights that move lags behind"
    with open_source(config, Reading("val", 6, shuffle=False), device="cpu") as source:
        model = load_trained(config, source, latest_checkpoint(tmp_path / "checkpoints"))
    evaluated = model.predictor.state_dict()
    assert all(torch.equal(evaluated[name[10:]], found[-1][f"average.{name[10:]}"]) for name in names)
    with pytest.raises(TrainingError, match=r"training\.ema was 0\.4, is None"):
        train.run(load_config(encoded, [f"training.dir={tmp_path}", "training.steps=9"]), resume=True)


def test_evaluation_is_kept_and_its_json_is_what_scripts_rely_on(
    encoded: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    config = load_config(encoded, [f"training.dir={tmp_path}"])
    capsys.readouterr()
    evaluate.run(config, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert printed == kept
    assert kept["leak"] is False and kept["fingerprint"] == LatentCache(str(config.cache.dir)).fingerprint
    assert [(row["horizon"], row["clips"]) for row in kept["horizons"]] == [(1, 6), (2, 6)]
    assert all(set(row) >= {"seconds", "skill"} and "copy_last" in row["skill"] for row in kept["horizons"])
    assert (tmp_path / "skill.png").read_bytes().startswith(b"\x89PNG")
    evaluate.run(config)
    assert "skill over each baseline" in capsys.readouterr().out


def test_latents_that_saw_the_future_are_refused_and_marked(
    encoded_jointly: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LeakError, match="has already seen step 3"):
        train.run(load_config(encoded_jointly, [f"training.dir={tmp_path}"]))
    config = load_config(encoded_jointly, [f"training.dir={tmp_path}", "allow_leak=true"])
    train.run(config)
    capsys.readouterr()
    evaluate.run(config, as_json=True)
    assert json.loads(capsys.readouterr().out)["leak"] is True


def test_a_checkpoint_of_other_latents_is_refused(encoded_jointly: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    other = load_config(encoded_jointly, [f"training.dir={tmp_path}", "training.steps=9", "allow_leak=true"])
    with pytest.raises(TrainingError, match="allow_leak was False, is True"):  # by its settings, before its fingerprint
        train.run(other, resume=True)
    with pytest.raises(TrainingError, match="trained on latents"):
        evaluate.run(other)


def test_a_cache_that_grew_is_evaluated_with_the_statistics_of_training(config_file: Path) -> None:
    """The checkpoint's, which the predictor knows, and not those that the whole cache has now."""
    config = load_config(config_file, ["cache.shard_bytes=30000"])
    encode.run(config, shards=(0, 2))
    train.run(config)
    some = LatentCache(str(config.cache.dir)).statistics()
    encode.run(config)
    whole = LatentCache(str(config.cache.dir))
    assert not torch.equal(whole.statistics().mean, some.mean)
    with open_source(config, Reading("val", 6, shuffle=False), device="cpu") as source:
        checkpoint = latest_checkpoint(Path(str(config.training.dir)) / "checkpoints")
        model = load_trained(config, source, checkpoint)
        (batch,) = latent_batches(model, source, "cpu")
    stored = torch.stack([torch.from_numpy(clip.latents) for clip in whole.split("val")])
    torch.testing.assert_close(batch.latents, some.standardise(stored), atol=1e-5, rtol=1e-5)
    assert batch.targets is batch.latents


def test_metrics_are_means_over_the_logged_steps(encoded: Path, tmp_path: Path) -> None:
    for every in (1, 3):
        settings = [f"training.log_every={every}", f"training.dir={tmp_path / str(every)}", "training.accumulate=2"]
        train.run(load_config(encoded, settings))
    each, some = (read_metrics(tmp_path / every / "metrics.jsonl") for every in ("1", "3"))
    assert [line["step"] for line in some] == [1, 3, 6]
    for name in ("loss", "loss/prediction", "loss/copy_last", "gradient_norm", "learning_rate"):
        steps = [line[name] for line in each]
        means = [steps[0], sum(steps[1:3]) / 2, sum(steps[3:]) / 3]
        assert [line[name] for line in some] == pytest.approx(means, rel=1e-5), name


def test_a_stable_rate_is_extended_as_if_asked_for_at_first(encoded: Path, tmp_path: Path) -> None:
    common = ["training.schedule=wsd", "training.checkpoint_every=3", "training.keep_checkpoints=9"]
    whole, extended = ([*common, f"training.dir={tmp_path / name}"] for name in ("whole", "extended"))
    train.run(load_config(encoded, [*whole, "training.steps=9"]))
    train.run(load_config(encoded, [*extended, "training.steps=6"]))
    rates = [read_metrics(tmp_path / name / "metrics.jsonl")[5]["learning_rate"] for name in ("whole", "extended")]
    assert rates == pytest.approx([5e-4, 5e-6]), "the last one had fallen"
    shutil.rmtree(tmp_path / "extended" / "checkpoints" / "step-00000006")
    train.run(load_config(encoded, [*extended, "training.steps=9"]), resume=True)
    assert losses(tmp_path / "extended") == losses(tmp_path / "whole")


def test_the_newest_checkpoints_are_kept(encoded: Path, tmp_path: Path) -> None:
    settings = ["training.checkpoint_every=1", "training.keep_checkpoints=3", f"training.dir={tmp_path}"]
    train.run(load_config(encoded, [*settings, "training.steps=4"]))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000003", "step-00000004"]


def test_a_cache_trains_no_encoder(encoded: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.source=videos"):
        train.run(load_config(encoded, ["encoder_trainable=true"]))


def test_latents_are_not_augmented(encoded: Path) -> None:
    with pytest.raises(ConfigError, match=r"no pixels to crop; set training\.source=videos"):
        train.run(load_config(encoded, ["training.augment.flip=true"]))
    with pytest.raises(ConfigError, match="a cache keeps one form of each clip"):
        encode.run(load_config(encoded, ["training.augment.crop=0.5", "training.source=videos"]))


def test_a_loss_that_is_not_finite_stops_with_the_clip(encoded: Path, tmp_path: Path) -> None:
    overrides = [f"training.dir={tmp_path}", "training.learning_rate=1e30", "training.clip_norm=1e30"]
    with pytest.raises(TrainingError, match=r"not finite for clips t0"):
        train.run(load_config(encoded, overrides))


def test_two_processes_train_as_one_with_twice_the_batch(encoded: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train.run(load_config(encoded, [f"training.dir={one}", "training.batch_size=8"]))
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--no-python",
    ]  # as the guide says
    command = [*torchrun, "flcache", "train", "--config", str(encoded), f"training.dir={two}"]
    scripts = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": scripts}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Training: 6/6") == 1, "one process shows progress"
    for (step, expected), (other, found) in zip(losses(one), losses(two), strict=True):
        assert step == other and math.isclose(expected, found, rel_tol=1e-4), (losses(one), losses(two))
