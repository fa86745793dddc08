"""Evaluation of rollouts: horizons, padding, baselines, leaks, and JSON without NaN."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.errors import DataError, LeakError
from flcache.evaluation import (
    BASELINES,
    EvaluationResult,
    Interval,
    Predict,
    Sampling,
    baselines_table,
    copy_last,
    detail_table,
    evaluate,
    evaluation_table,
    fit_baselines,
)
from flcache.predictor import PredictorOptions, build_predictor

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
        assert horizon.skill["copy_last"] == pytest.approx(0.75, abs=1e-6)
        assert set(horizon.skill) == set(BASELINES)
        assert horizon.seconds == pytest.approx(STEPS_APART_S * horizon.horizon)
        assert horizon.clips == 5


def test_how_clips_are_batched_does_not_matter() -> None:
    batch = clips()
    torch.manual_seed(0)
    predictor = build_predictor(PredictorOptions("causal", "tiny", {"depth": 1, "width": 24, "heads": 2}), (T, 2, 2, 4))
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
    keys = {"horizon", "seconds", "clips", "error", "l1", "cosine", "skill", "baselines", "error_interval"}
    keys |= {"skill_interval", "motion_quartiles", "retrieval", "variance_ratio", "prediction_rank", "truth_rank"}
    assert all(set(horizon) == keys for horizon in report["horizons"])
    assert report["horizons"][0]["skill"]["copy_last"] == pytest.approx(0.75, abs=1e-6)
    empty = report["horizons"][3]
    assert empty["clips"] == 0
    assert [empty[key] for key in ("seconds", "error", "cosine")] == [None, None, None]
    assert empty["skill"] == dict.fromkeys(BASELINES)
    assert empty["skill_interval"]["linear"] == [None, None] and empty["motion_quartiles"] == []


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
    predictor = build_predictor(PredictorOptions("causal", "tiny", {"depth": 1}), (T, 2, 2, 4))
    for predict in (predictor.predict, copy_last):
        result = evaluate(predict, [clips()], seen_until=range(T), fingerprint="")
        assert [horizon.skill["copy_last"] for horizon in result.horizons] == [0.0] * 4
        assert all(horizon.skill_interval["copy_last"] == Interval(0, 0) for horizon in result.horizons)


def test_static_videos_have_no_skill_to_show() -> None:
    batch = clips()
    batch.latents[:] = batch.latents[:, :1]
    jitter = lambda *arguments: copy_last(*arguments) * (1 + 1e-5)  # noqa: E731
    result = evaluate(jitter, [batch], seen_until=range(T), fingerprint="")
    assert [horizon.skill["copy_last"] for horizon in result.horizons] == [0.0] * 4
    assert all(horizon.skill_interval["copy_last"] == Interval(0, 0) for horizon in result.horizons)


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(DataError, match="no clips to evaluate"):
        evaluate(copy_last, [], seen_until=range(T), fingerprint="")


def test_table_shows_every_horizon_and_a_leak() -> None:
    batch = clips()
    batch.valid[:, 5] = False
    honest = printed(evaluation_table(result_of(batch)))
    leaking = evaluate(copy_last, [batch], seen_until=[T] * T, fingerprint="", allow_leak=True)
    rows = [line.split() for line in honest.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0][1:3] == ["0.500", "5"] and rows[0][4].startswith("0.75±")
    assert rows[3][1:] == ["-", "0", "-", "-", "-", "-"]
    assert "LEAK" not in honest
    for table in (evaluation_table, detail_table, baselines_table):
        assert "LEAK" in printed(table(leaking))


def printed(table: Table, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("more", [{}, {"own_predictor": lambda *given: -9 * copy_last(*given)}])
def test_all_tables_of_all_baselines_fit_on_80_columns(more: dict[str, Predict]) -> None:
    batch = clips(12)
    baselines = fit_baselines([batch], seen_until=range(T), ridge_steps=2) | more
    result = evaluate(copy_last, [batch], seen_until=range(T), fingerprint="", baselines=baselines)
    for table in (evaluation_table(result), detail_table(result), baselines_table(result)):
        text = printed(table)
        assert "…" not in text
        rows = [line for line in text.splitlines() if line.strip()[:1].isdigit()]
        assert len(rows) == 4 and max(map(len, text.splitlines())) <= 80
    assert "±" in printed(baselines_table(result))


def test_intervals_quartiles_and_retrieval_follow_the_clips() -> None:
    batch = clips(12)
    batch.latents[:, CONTEXT:] = batch.latents[:, CONTEXT - 1 : CONTEXT] + torch.linspace(0.1, 2, 12)[
        :, None, None, None, None
    ] * (batch.latents[:, CONTEXT:] - batch.latents[:, CONTEXT - 1 : CONTEXT])
    for horizon in result_of(batch).horizons:
        interval = horizon.skill_interval["copy_last"]
        assert (interval.low, interval.high) == pytest.approx((0.75, 0.75), abs=1e-5), "half of every motion is known"
        assert horizon.error_interval is not None
        assert horizon.error_interval.low < horizon.prediction.error < horizon.error_interval.high
        motions = [quartile.motion for quartile in horizon.quartiles]
        assert motions == sorted(motions) and len(motions) == 4
        assert sum(motions) / 4 == pytest.approx(horizon.baselines["copy_last"].error)
        assert sum(quartile.error for quartile in horizon.quartiles) / 4 == pytest.approx(horizon.prediction.error)
        assert all(quartile.skill["copy_last"] == pytest.approx(0.75, abs=1e-6) for quartile in horizon.quartiles)
        assert horizon.retrieval["prediction"].at_1 >= horizon.retrieval["copy_last"].at_1
        assert horizon.baseline_skill["copy_last"] == 0


def test_generative_predictors_are_sampled() -> None:
    batch = clips()

    def sample(context: Tensor, context_times: Tensor, target_times: Tensor, num_samples: int) -> Tensor:
        truth = batch.target[:, : target_times.shape[1]]
        return torch.stack([truth + offset for offset in range(num_samples)])

    result = evaluate(copy_last, [batch], seen_until=range(T), fingerprint="", sampling=Sampling(sample, 3), horizons=2)
    for horizon in result.to_json()["horizons"]:
        found = horizon["samples"]
        assert found["samples"] == 3 and found["best"] == pytest.approx(0, abs=1e-9)
        assert found["mean"] == pytest.approx(1, rel=1e-5) and found["diversity"] == pytest.approx(1, rel=1e-5)


def test_csv_is_the_json_in_columns() -> None:
    result, stream = result_of(clips(8)), io.StringIO()
    result.write_csv(stream)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    for row, horizon in zip(rows, result.to_json()["horizons"], strict=True):
        assert float(row["skill.copy_last"]) == horizon["skill"]["copy_last"]
        assert float(row["skill_interval.linear.high"]) == horizon["skill_interval"]["linear"][1]
        assert float(row["motion_quartiles.4.motion"]) == horizon["motion_quartiles"][3]["motion"]
        assert row["leak"] == "False"
