"""Evaluation of rollouts: horizons, padding, baselines, leaks, and JSON without NaN."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

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
    samples_table,
)
from flcache.evaluation.report.verdict import outcome
from flcache.predictor import PredictorOptions, build_predictor

T, CONTEXT = 6, 2
STEPS_APART_S = 0.5


def clips(count: int = 5, *, seed: int = 0) -> LatentBatch:
    latents = torch.randn(count, T, 2, 2, 4, generator=torch.Generator().manual_seed(seed))
    times = STEPS_APART_S * torch.arange(T).expand(count, T).float()
    valid = torch.ones(count, T, dtype=torch.bool)
    return LatentBatch(latents, latents, times, valid, tuple(f"video{k}-0" for k in range(count)), CONTEXT)


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


class ExactSampler:
    """Draws the next steps of an autoregression as they are drawn in truth, and counts how often it is asked."""

    def __init__(self, decay: float) -> None:
        self.decay, self.clips_sampled = decay, 0
        self._generator = torch.Generator().manual_seed(99)

    def follow(self, last: Tensor, steps: int) -> Tensor:
        """(B, H, W, D) and what comes after it, (B, steps, H, W, D)."""
        following = []
        for _ in range(steps):
            noise = torch.randn(last.shape, generator=self._generator)
            last = self.decay * last + (1 - self.decay**2) ** 0.5 * noise
            following.append(last)
        return torch.stack(following, dim=1)

    def clips(self, count: int) -> LatentBatch:
        start = torch.randn(count, 2, 2, 64, generator=self._generator)
        return replace(clips(count), latents=(latents := self.follow(start, T)), targets=latents)

    def draw(self, context: Tensor, context_times: Tensor, target_times: Tensor, seeds: Sequence[int]) -> Tensor:
        self.clips_sampled += len(seeds)
        return self.follow(context[:, -1], target_times.shape[1])

    def predict(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        return self.draw(context, context_times, target_times, range(len(context)))


@pytest.mark.parametrize("num_samples", [2, 8])
def test_an_exact_sampler_has_the_skill_of_the_best_prediction(num_samples: int) -> None:
    """Whatever the number of samples. One sample has twice the error of the best prediction: a skill of -0.79."""
    sampler = ExactSampler(0.79)
    sampling = Sampling(sampler.draw, num_samples)
    batches = [sampler.clips(128) for _ in range(4)]
    result = evaluate(sampler.predict, batches, seen_until=range(T), fingerprint="", sampling=sampling)
    for k, horizon in enumerate(result.horizons, start=1):
        best = 1 - (1 - 0.79 ** (2 * k)) / (2 * (1 - 0.79**k))  # of 0.79 ** k times the last step
        found, interval = horizon.samples, horizon.skill_interval["copy_last"]
        assert found is not None
        assert horizon.skill["copy_last"] == pytest.approx(best, abs=0.02)
        assert 0 < interval.low < horizon.skill["copy_last"] < interval.high
        assert found.single_skill == pytest.approx(-(0.79**k), abs=0.03)
        assert found.single == pytest.approx(2 * horizon.prediction.error, rel=0.04)
        assert found.mean == pytest.approx(horizon.prediction.error * (1 + 1 / num_samples), rel=0.03)
        assert found.energy_skill_interval.low > horizon.skill["copy_last"], "it knows how sure to be"
        assert horizon.spread is not None and horizon.spread.variance_ratio == pytest.approx(1, abs=0.1), "no blur"


def test_samples_are_drawn_once_and_of_the_first_clips_alone() -> None:
    sampler = ExactSampler(0.5)
    batches, read = [sampler.clips(6) for _ in range(5)], []

    def reading() -> Iterator[LatentBatch]:
        for batch in batches:
            read.append(batch)
            yield batch

    result = evaluate(
        sampler.predict,
        reading(),
        seen_until=range(T),
        fingerprint="",
        sampling=Sampling(sampler.draw, 3, max_clips=10),
    )
    assert sampler.clips_sampled == 30 and len(read) == 2
    assert {horizon.clips for horizon in result.horizons} == {10}


def test_samples_have_a_table_and_json() -> None:
    sampler = ExactSampler(0.8)
    sampling = Sampling(sampler.draw, 3)
    result = evaluate(
        sampler.predict, [sampler.clips(12)], seen_until=range(T), fingerprint="", sampling=sampling, horizons=2
    )
    table = samples_table(result)
    assert table is not None and samples_table(result_of(clips())) is None
    text = printed(table)
    assert "…" not in text and len([line for line in text.splitlines() if line.strip()[:1].isdigit()]) == 2
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))["horizons"][0]["samples"]
    keys = {"samples", "mean", "single", "best", "diversity", "energy"}
    assert set(found) == keys | {"single_skill", "single_skill_interval", "energy_skill", "energy_skill_interval"}
    assert found["samples"] == 3 and found["best"] < found["single"] and len(found["energy_skill_interval"]) == 2


def trained_apart(batch: LatentBatch) -> LatentBatch:
    """As an encoder in training makes it: the moving average lags behind, and latents are twice as large by now."""
    return replace(batch, latents=2.2 * batch.latents + 0.3, targets=2 * batch.targets)


def test_baselines_see_what_the_targets_encoder_makes() -> None:
    """Moving clips cost as much as if there were one encoder, in units of the targets' variance; identical steps cost
    nothing. The predictor sees its own context."""
    batch = clips(12)
    fitted = fit_baselines([batch], seen_until=range(T), ridge_steps=2)
    apart = trained_apart(batch)
    fitted_apart = fit_baselines([apart], seen_until=range(T), ridge_steps=2)
    asked: list[Tensor] = []

    def predict(context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        asked.append(context)
        return copy_last(context, context_times, target_times)

    one = evaluate(copy_last, [batch], seen_until=range(T), fingerprint="", baselines=fitted)
    two = evaluate(predict, [apart], seen_until=range(T), fingerprint="", baselines=fitted_apart)
    variance = batch.target.flatten(0, -2).var(0, unbiased=False).mean().item()
    assert one.target_variance is None and two.target_variance == pytest.approx(4 * variance, rel=1e-5)
    assert two.to_json()["target_variance"] == two.target_variance and "target_variance" not in one.to_json()
    for plain, relative in zip(one.horizons, two.horizons, strict=True):
        for name in fitted:
            assert relative.baselines[name].error == pytest.approx(plain.baselines[name].error / variance, rel=1e-3)
            assert relative.baselines[name].l1 == pytest.approx(plain.baselines[name].l1 / variance**0.5, rel=1e-3)
        assert relative.prediction.error > relative.baselines["copy_last"].error, "its context is off by 10 %"
    assert torch.equal(asked[0], apart.context)
    still = replace(batch, latents=(latents := batch.latents[:, :1].expand_as(batch.latents)), targets=latents)
    found = evaluate(copy_last, [trained_apart(still)], seen_until=range(T), fingerprint="")
    assert [horizon.baselines["copy_last"].error for horizon in found.horizons] == [0.0] * 4


def test_intervals_are_of_videos() -> None:
    """Every clip twice says nothing new: as two clips of a video they leave the interval as it is."""
    batch = clips(12)
    twice = part(batch, 0, 12)
    twice = replace(twice, ids=tuple(clip_id.replace("-0", "-1") for clip_id in twice.ids))
    options: dict[str, object] = {"seen_until": range(T), "fingerprint": "", "baselines": BASELINES}
    once = evaluate(lambda *given: copy_last(*given) / 2, [batch], **options)  # type: ignore[arg-type]
    both = evaluate(lambda *given: copy_last(*given) / 2, [batch, twice], **options)  # type: ignore[arg-type]
    apart = evaluate(
        lambda *given: copy_last(*given) / 2,
        [batch, twice],
        **options,  # type: ignore[arg-type]
        video_of={clip_id: clip_id for clip_id in (*batch.ids, *twice.ids)},
    )
    for name in BASELINES:
        widths = [
            interval.high - interval.low
            for result in (once, both, apart)
            for interval in [result.horizons[0].skill_interval[name]]
        ]
        assert widths[1] == pytest.approx(widths[0], rel=1e-6) and widths[2] < 0.85 * widths[0]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_diverges_at_one_clip_has_no_skill_and_no_interval(broken: float) -> None:
    def diverged(context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        prediction = copy_last(context, context_times, target_times).clone()
        prediction[3, 0] = broken
        return prediction

    baselines = {"copy_last": copy_last, "diverged": diverged}
    for predict, lost in ((copy_last, ["diverged"]), (diverged, ["copy_last", "diverged"])):
        result = evaluate(predict, [clips(12)], seen_until=range(T), fingerprint="", baselines=baselines)
        first, second = result.horizons[:2]
        assert [name for name in baselines if math.isnan(first.skill[name])] == lost
        assert [name for name in baselines if math.isnan(first.skill_interval[name].low)] == lost
        assert second.skill == {"copy_last": 0, "diverged": 0} and second.skill_interval["diverged"] == Interval(0, 0)
        assert "ahead" not in [outcome(row, name) for row in result.to_json()["horizons"] for name in baselines]


def test_csv_is_the_json_in_columns() -> None:
    result, stream = result_of(clips(8)), io.StringIO()
    result.write_csv(stream)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    for row, horizon in zip(rows, result.to_json()["horizons"], strict=True):
        assert float(row["skill.copy_last"]) == horizon["skill"]["copy_last"]
        assert float(row["skill_interval.linear.high"]) == horizon["skill_interval"]["linear"][1]
        assert float(row["motion_quartiles.4.motion"]) == horizon["motion_quartiles"][3]["motion"]
        assert row["leak"] == "False"
