"""An encoder that trains, as a user runs it: a space that shrinks improves no figure, and a collapse stops the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_run import flcache

from flcache.cache import LatentCache
from flcache.config import load_config
from flcache.encoder import LatentVideoModel
from flcache.errors import ConfigError, TrainingError
from flcache.pipelines import encode, evaluate, export, train
from flcache.training import read_metrics

TRAINABLE = ["training.source=videos", "encoder_trainable=true", "predictor.kind=parallel"]
ONLINE = [*TRAINABLE, "training.target_encoder=online"]
WEIGHT = 5.0
COLLAPSING = [
    "encoder.architecture.hidden_size=96",
    "training.steps=51",
    "training.learning_rate=5e-3",
    "training.schedule=constant",
    "training.checkpoint_every=51",
]
"""A fresh encoder at such a rate: the rank of its latents falls to a tenth within 50 steps."""


def trained(encoded: Path, directory: Path, *settings: str) -> dict[str, list[float]]:
    """The logged metrics of a run by name."""
    train.run(load_config(encoded, [*settings, f"training.dir={directory}"]))
    lines = read_metrics(directory / "metrics.jsonl")
    return {name: [line[name] for line in lines if name in line] for name in {key for line in lines for key in line}}


def skills(directory: Path) -> list[float]:
    rows = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))["horizons"]
    return [value for row in rows for value in row["skill"].values()]


def test_an_encoder_scaled_on_purpose_moves_no_figure(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, copying, validation and evaluation. The start's statistics are of the scaled encoder, or of the cache."""
    settings = [*TRAINABLE, "training.validate_every=2", "training.accumulate=2"]
    own = [*settings, f"cache.dir={tmp_path / 'none'}"]
    expected = trained(encoded, tmp_path / "plain", *own)
    evaluate.run(load_config(encoded, [*own, f"training.dir={tmp_path / 'plain'}"]))
    encode_whole = LatentVideoModel.encode
    monkeypatch.setattr(LatentVideoModel, "encode", lambda self, pixels: 0.1 * encode_whole(self, pixels))
    found = trained(encoded, tmp_path / "scaled", *own)
    evaluate.run(load_config(encoded, [*own, f"training.dir={tmp_path / 'scaled'}"]))
    moved = {"clips_per_s", "data_wait_fraction"}
    assert {"loss", "loss/copy_last", "validation/copy_last", "latents/rank"} <= found.keys() - moved
    for name in found.keys() - moved:
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
    assert skills(tmp_path / "scaled") == pytest.approx(skills(tmp_path / "plain"), abs=1e-4)
    suddenly = trained(encoded, tmp_path / "suddenly", *settings)
    for name in ("loss", "loss/copy_last"):
        assert suddenly[name] == pytest.approx(expected[name], rel=1e-3)
    assert suddenly["latents/deviation"][0] < 0.2 * expected["latents/deviation"][0], "the watch sees it"


def test_without_any_guard_the_watch_stops_the_run(encoded: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the latents are collapsing: their (change|rank) fell from"):
        trained(encoded, tmp_path, *ONLINE, *COLLAPSING)


@pytest.mark.parametrize("kind", ["sigreg", "vicreg"])
def test_with_an_anti_collapse_term_the_same_run_goes_on(encoded: Path, tmp_path: Path, kind: str) -> None:
    weighted = [f"training.anti_collapse={kind}", f"training.anti_collapse_weight={WEIGHT}"]
    found = trained(encoded, tmp_path, *ONLINE, *COLLAPSING, *weighted)
    assert found["latents/rank"][-1] > 0.25 * found["latents/rank"][0]
    terms = zip(found["loss/prediction"], found["loss/anti_collapse"], strict=True)
    assert found["loss"] == pytest.approx([prediction + WEIGHT * term for prediction, term in terms], rel=1e-5)


def test_an_encoder_that_is_its_own_target_is_evaluated_and_exported(encoded: Path, tmp_path: Path) -> None:
    settings = [*ONLINE, "training.anti_collapse=sigreg"]
    trained(encoded, tmp_path / "training", *settings)
    evaluate.run(load_config(encoded, [*settings, f"training.dir={tmp_path / 'training'}"]))
    found = json.loads((tmp_path / "training" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["end_to_end"]["target_weights"] == found["end_to_end"]["online_weights"]
    assert found["target_variance"] == pytest.approx(1, abs=0.5)
    export.run(tmp_path / "training", tmp_path / "model")
    card = json.loads((tmp_path / "model" / "predictor" / "predictor.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["encoder", "predictor"]
    again = [f"encoder.name={tmp_path / 'model' / 'encoder'}", f"cache.dir={tmp_path / 'cache'}"]
    encode.run(load_config(encoded, again))
    assert LatentCache(tmp_path / "cache").fingerprint == card["fingerprint"] == found["fingerprint"]


def test_a_frozen_encoder_is_refused_in_one_line(encoded: Path, tmp_path: Path) -> None:
    for option in ("training.anti_collapse=vicreg", "training.target_encoder=online"):
        with pytest.raises(ConfigError, match=r"a frozen encoder cannot collapse; set encoder_trainable=true"):
            train.run(load_config(encoded, [option, f"training.dir={tmp_path}"]))
    done = flcache("train", "--config", encoded, "training.anti_collapse=sigreg", f"training.dir={tmp_path}")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
