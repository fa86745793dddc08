"""Evaluation of rollouts: horizons, padding, baselines, leaks, and JSON without NaN."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.errors import DataError, LeakError
from flcache.evaluation import EvaluationResult, copy_last, evaluate, evaluation_table
from flcache.predictor import build_predictor

T, CONTEXT = 6, 2
STEPS_APART_S = 0.5


def clips(count: int = 5, *, seed: int = 0) -> LatentBatch:
    latents = torch.randn(count, T, 2, 2, 4, generator=torch.Generator().manual_seed(seed))
    times = STEPS_APART_S * torch.arange(T).expand(count, T).float()
    valid = torch.ones(count, T, dtype=torch.bool)
    return LatentBatch(latents, latents, times, valid, tuple(f"clip-{k}" for k in range(count)), CONTEXT)


def part(batch: LatentBatch, start: int, end: int) -> LatentBatch:
    chosen = slice(start, end)
    latents = batch.latents[chosen]
    return LatentBatch(latents, latents, batch.times[chosen], batch.valid[chosen], batch.ids[chosen], CONTEXT)


def halfway(batch: LatentBatch) -> Iterator[Tensor]:
    """Predictions halfway between the copy and the truth: a squared error of a quarter."""
    yield (batch.latents[:, CONTEXT - 1 : CONTEXT] + batch.target) / 2


def result_of(batch: LatentBatch, **options: object) -> EvaluationResult:
    predictions = halfway(batch)
    return evaluate(
        lambda _context, _times, target_times: next(predictions)[:, : target_times.shape[1]],
        [batch],
        seen_until=range(T),
        fingerprint="f00d",
        **options,  # type: ignore[arg-type]
    )


def test_errors_and_skill_per_horizon() -> None:
    batch = clips()
    result = result_of(batch)
    assert [horizon.horizon for horizon in result.horizons] == [1, 2, 3, 4]
    for horizon in result.horizons:
        target = batch.latents[:, CONTEXT - 1 + horizon.horizon].double()
        copied = (batch.latents[:, CONTEXT - 1].double() - target).square().mean().item()
        assert horizon.baselines["copy_last"].error == pytest.approx(copied, rel=1e-6)
        assert horizon.prediction.error == pytest.approx(copied / 4, rel=1e-6)
        assert horizon.skill == {"copy_last": pytest.approx(0.75, abs=1e-6)}
        assert horizon.seconds == pytest.approx(STEPS_APART_S * horizon.horizon)
        assert horizon.clips == 5


def test_how_clips_are_batched_does_not_matter() -> None:
    batch = clips()
    torch.manual_seed(0)
    predictor = build_predictor("tiny", {"depth": 1, "width": 24, "heads": 2}, latent_shape=(T, 2, 2, 4))
    torch.nn.init.normal_(predictor.head.weight, std=0.1)
    whole, parts = (
        evaluate(predictor.predict, batches, seen_until=range(T), fingerprint="")
        for batches in ([batch], [part(batch, 0, 2), part(batch, 2, 5)])
    )
    for one, other in zip(whole.horizons, parts.horizons, strict=True):
        assert other.prediction.error == pytest.approx(one.prediction.error, rel=1e-5)
        assert other.skill["copy_last"] == pytest.approx(one.skill["copy_last"], abs=1e-5)


def test_padded_steps_count_at_no_horizon() -> None:
    batch = clips()
    batch.valid[0, 3:] = False
    batch.latents[0, 3:] = 1e6
    batch.times[0, 3:] = 1e6
    batch.valid[:, 5] = False
    result = result_of(batch)
    rest = result_of(part(batch, 1, 5))
    assert [horizon.clips for horizon in result.horizons] == [5, 4, 4, 0]
    assert result.horizons[1].prediction == rest.horizons[1].prediction
    assert result.horizons[2].seconds == rest.horizons[2].seconds


def test_json_has_the_agreed_keys_and_no_nan() -> None:
    batch = clips(2)
    batch.valid[:, 5] = False
    report = json.loads(json.dumps(result_of(batch).to_json(), allow_nan=False))
    assert set(report) == {"horizons", "leak", "fingerprint"}
    assert (report["leak"], report["fingerprint"]) == (False, "f00d")
    keys = {"horizon", "seconds", "clips", "error", "l1", "cosine", "skill", "baselines"}
    assert all(set(horizon) == keys for horizon in report["horizons"])
    assert report["horizons"][0]["skill"]["copy_last"] == pytest.approx(0.75, abs=1e-6)
    empty = report["horizons"][3]
    assert empty["clips"] == 0
    assert [empty[key] for key in ("seconds", "error", "cosine")] == [None, None, None]
    assert empty["skill"] == {"copy_last": None}


def test_diverged_prediction_is_null_in_json() -> None:
    result = evaluate(
        lambda *arguments: copy_last(*arguments) * torch.inf, [clips()], seen_until=range(T), fingerprint=""
    )
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["horizons"][0]["error"] is None


def test_horizons_can_be_limited() -> None:
    assert [horizon.horizon for horizon in result_of(clips(), horizons=2).horizons] == [1, 2]


def test_context_that_has_seen_the_future_is_refused_or_marked() -> None:
    seen_until = [T - 1] * T
    with pytest.raises(LeakError, match="has already seen step 5"):
        evaluate(copy_last, [clips()], seen_until=seen_until, fingerprint="")
    result = evaluate(copy_last, [clips()], seen_until=seen_until, fingerprint="", allow_leak=True)
    assert result.to_json()["leak"] is True
    assert evaluate(copy_last, [clips()], seen_until=range(T), fingerprint="", allow_leak=True).leak is False


def test_untrained_predictor_and_copy_have_skill_exactly_zero() -> None:
    predictor = build_predictor("tiny", {"depth": 1}, latent_shape=(T, 2, 2, 4))
    for predict in (predictor.predict, copy_last):
        result = evaluate(predict, [clips()], seen_until=range(T), fingerprint="")
        assert [horizon.skill["copy_last"] for horizon in result.horizons] == [0.0] * 4


def test_static_videos_have_no_skill_to_show() -> None:
    batch = clips()
    batch.latents[:] = batch.latents[:, :1]
    jitter = lambda *arguments: copy_last(*arguments) * (1 + 1e-5)  # noqa: E731
    result = evaluate(jitter, [batch], seen_until=range(T), fingerprint="")
    assert [horizon.skill["copy_last"] for horizon in result.horizons] == [0.0] * 4


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(DataError, match="no clips to evaluate"):
        evaluate(copy_last, [], seen_until=range(T), fingerprint="")


def test_table_shows_every_horizon_and_a_leak() -> None:
    batch = clips()
    batch.valid[:, 5] = False
    console = Console(file=io.StringIO(), width=120)
    console.print(evaluation_table(result_of(batch)))
    console.print(evaluation_table(evaluate(copy_last, [batch], seen_until=[T] * T, fingerprint="", allow_leak=True)))
    assert isinstance(console.file, io.StringIO)
    honest, leaking = console.file.getvalue().split("Predicted latents, by horizon")[1:]
    rows = [line.replace("│", " ").split() for line in honest.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0][1:3] + rows[0][-1:] == ["0.500", "5", "0.750"]
    assert rows[3][1:] == ["-", "0", "-", "-", "-"]
    assert "LEAK" in leaking
    assert "LEAK" not in honest
