"""A training step never waits for its device but where it logs: counted on a CPU, operator by operator."""

from __future__ import annotations

from pathlib import Path

import pytest
from waits import Waits

from flcache.config import load_config
from flcache.pipelines import train
from flcache.predictor import PREDICTORS
from flcache.training.loop import Run
from flcache.training.world_model import WorldModel

SETTINGS = {
    **{kind: [f"predictor.kind={kind}"] for kind in PREDICTORS},
    "rollout": ["training.rollout_steps=2", "training.horizon_weights=[2,1]"],
    "cosine": ["training.loss=cosine", "predictor.kind=parallel"],
    "frozen": ["training.source=videos"],
    "trainable": ["training.source=videos", "encoder_trainable=[layer.1]", "training.layer_decay=0.5"],
    "augmented": ["training.source=videos", "training.augment.crop=0.5", "training.augment.flip=true"],
}
SETTINGS["flow_matching"].append("training.loss=l2")
HOST = ("training/finite.py",)
"""On a GPU it copies beside the work and asks whether that is done; `test_finite.py` has that."""


def waits_of_steps(monkeypatch: pytest.MonkeyPatch, config: Path, *overrides: str) -> dict[int, list[str]]:
    """What each of 5 steps would wait for; the first and the last one log."""
    found: dict[int, list[str]] = {}
    optimise, logged = Run._optimise, Run._logged

    def counted(run: Run, *given: object) -> None:
        with Waits(*HOST) as waits:
            optimise(run, *given)  # type: ignore[arg-type]
        found[run.step] = waits.found

    def counted_log(run: Run) -> dict[str, float]:
        with Waits(*HOST) as waits:
            values = logged(run)
        found[run.step] += waits.found
        return values

    monkeypatch.setattr(Run, "_optimise", counted)
    monkeypatch.setattr(Run, "_logged", counted_log)
    settings = ["training.accumulate=2", "training.ema=0.9", "training.steps=5", "training.log_every=9"]
    train.run(load_config(config, [*settings, *overrides]))
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_waits_where_it_logs_and_nowhere_else(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = waits_of_steps(monkeypatch, encoded, *SETTINGS[name], f"training.dir={tmp_path}")
    assert found[1] and found[5], "what logs is seen"
    assert [found[step] for step in (2, 3, 4)] == [[], [], []]


@pytest.mark.parametrize("call", ["item", "tolist", "nonzero", "cpu", "__bool__"])
def test_one_that_is_slipped_into_a_step_is_found(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(WorldModel, "update_average", lambda self, *_: getattr(self.mean.sum(), call)())
    found = waits_of_steps(monkeypatch, encoded, f"training.dir={tmp_path}")
    assert [len(found[step]) for step in (2, 3, 4)] == [1, 1, 1]
