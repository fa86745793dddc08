"""Baselines without training: direct formulas, closed forms, and what they may look at."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flcache.batch import LatentBatch
from flcache.errors import DataError, LeakError
from flcache.evaluation import BASELINES, copy_last, evaluate, fit_baselines
from flcache.evaluation.baselines import DatasetMean, linear_extrapolation, mean_of_context
from flcache.evaluation.ridge import Ridge, RidgeMoments, _Centred, _Sums

T, H, W, D = 8, 2, 3, 4
CONTEXT = 4


def clips(latents: torch.Tensor, *, valid_steps: int = T) -> LatentBatch:
    valid = (torch.arange(T) < valid_steps).expand(len(latents), T)
    times = 0.5 * torch.arange(T).expand(len(latents), T).float()
    return LatentBatch(latents, latents, times, valid, tuple(f"video{k}-0" for k in range(len(latents))), CONTEXT)


def random_clips(count: int, seed: int = 0) -> LatentBatch:
    return clips(torch.randn(count, T, H, W, D, generator=torch.Generator().manual_seed(seed)))


def autoregressive(count: int, *, seed: int) -> torch.Tensor:
    """Clips whose every step is an exact linear map of the two before it, plus a constant; (B, T, H, W, D)."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(99)))
    steps = list(torch.randn(2, count, H, W, D, generator=generator))
    while len(steps) < T:
        steps.append(0.7 * steps[-1] @ rotation - 0.2 * steps[-2] + 0.3)
    return torch.stack(steps, dim=1)


def test_linear_goes_on_in_a_straight_line_through_uneven_times() -> None:
    start, slope = torch.randn(2, 3, 1, H, W, D)
    times = torch.tensor([0.0, 0.4, 1.5, 1.7, 4.0]).expand(3, 5)
    line = start + slope * times[:, :, None, None, None]
    torch.testing.assert_close(linear_extrapolation(line[:, :3], times[:, :3], times[:, 3:]), line[:, 3:])
    assert torch.equal(
        linear_extrapolation(line[:, :1], times[:, :1], times[:, 1:3]), line[:, :1].expand(-1, 2, -1, -1, -1)
    )


def test_linear_copies_where_two_steps_have_the_same_time() -> None:
    """A video of 2 frames a second among others: its frames stay on display while others move on."""
    latents, times = torch.randn(3, 4, H, W, D), torch.tensor([[0.0, 0.5, 1.0, 1.5]]).repeat(3, 1)
    times[1] = torch.tensor([0.0, 0.0, 0.0, 0.5])
    found = linear_extrapolation(latents[:, :2], times[:, :2], times[:, 2:])
    assert torch.equal(found[1], latents[1, 1:2].expand(2, -1, -1, -1))
    torch.testing.assert_close(found[0, 1], 3 * latents[0, 1] - 2 * latents[0, 0])
    batch = random_clips(33)
    batch = replace(batch, times=batch.times.clone())
    batch.times[7] = batch.times[7].floor()
    result = evaluate(copy_last, [batch], seen_until=range(T), fingerprint="")
    for horizon in result.horizons:
        assert math.isfinite(horizon.skill["linear"]) and horizon.baselines["linear"].error < 100
        interval = horizon.skill_interval["linear"]
        assert interval.low < horizon.skill["linear"] < interval.high


def test_mean_of_context() -> None:
    batch = random_clips(2)
    prediction = mean_of_context(batch.context, batch.context_times, batch.target_times)
    torch.testing.assert_close(prediction[:, 3], batch.context.mean(1))
    assert prediction.shape == batch.target.shape


def test_dataset_mean_is_over_valid_steps_of_all_clips() -> None:
    whole, short = random_clips(3), clips(random_clips(2, seed=1).latents, valid_steps=5)
    fitted = fit_baselines([whole, short], seen_until=range(T), ridge_steps=1)["dataset_mean"]
    assert isinstance(fitted, DatasetMean)
    steps = torch.cat([whole.latents.flatten(0, 1), short.latents[:, :5].flatten(0, 1)]).double()
    torch.testing.assert_close(fitted.mean, steps.mean(0).float())
    prediction = fitted(whole.context, whole.context_times, whole.target_times)
    assert prediction.shape == whole.target.shape and torch.equal(prediction[2, 1], fitted.mean)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_ridge_solves_the_normal_equations_of_every_clip(horizon: int, by_position: bool) -> None:
    """Against one least-squares problem over all rows at once, in float64, under the same ridge."""
    batch = random_clips(20)
    sums = _Sums.none(H * W, 2 * D, 3 * D, 3, torch.device("cpu"))
    latents = batch.latents.double().flatten(2, 3)
    windows = [latents[:, t : t + 5].transpose(1, 2) for t in range(T - 4)]  # (B, P, 2 + 3, D)
    for window in windows:
        sums.add([(window[:, :, :2].flatten(2), window[:, :, 2:], slice(None))])
    centred_sums = _Centred.of(sums, by_position)
    weights, constants = centred_sums.solve(centred_sums.factor(0.1))
    rows = torch.cat(windows)
    groups = torch.eye(H * W).double().expand(len(rows), -1, -1) if by_position else torch.ones(len(rows), H * W, 1)
    features = torch.cat((rows[:, :, :2].flatten(2), groups), dim=2).flatten(0, 1)
    targets = rows[:, :, 1 + horizon].flatten(0, 1)
    gram = features.T @ features
    inputs, ones = features.split((2 * D, features.shape[1] - 2 * D), dim=1)
    centred = inputs - ones @ torch.linalg.lstsq(ones, inputs)[0]
    penalty = torch.zeros(len(gram)).double()
    penalty[: 2 * D] = 0.1 * (centred.T @ centred).diagonal().mean()
    expected = torch.linalg.solve(gram + penalty.diag(), features.T @ targets)
    chosen = slice((horizon - 1) * D, horizon * D)
    torch.testing.assert_close(weights[:, chosen], expected[: 2 * D], atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(constants[:, chosen], expected[2 * D :].expand(H * W, -1), atol=1e-8, rtol=1e-6)
    residual = features @ expected - targets
    error = residual.square().sum() / len(targets)
    assert sums.errors(weights, constants)[horizon - 1].item() == pytest.approx(error.item(), rel=1e-9)


def test_ridge_finds_an_exact_law_and_knows_what_it_gives_far_ahead() -> None:
    train, val = clips(autoregressive(32, seed=0)), clips(autoregressive(3, seed=1))
    ridge = fit_baselines([train], seen_until=range(T), ridge_steps=2)["ridge"]
    assert isinstance(ridge, Ridge) and {strength for strength, _ in ridge.choices} == {1e-6}
    prediction = ridge(val.context, val.context_times, val.target_times)
    torch.testing.assert_close(prediction, val.target, atol=1e-3, rtol=1e-3)


def test_noise_asks_for_a_strong_ridge() -> None:
    ridge = fit_baselines([random_clips(16)], seen_until=range(T), ridge_steps=3)["ridge"]
    assert isinstance(ridge, Ridge) and all(strength >= 1 for strength, _ in ridge.choices)


def moving(count: int, *, seed: int) -> torch.Tensor:
    """Latents that go on in straight lines with a little noise."""
    start, pace = torch.randn(2, count, 1, H, W, D, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(count, T, H, W, D, generator=torch.Generator().manual_seed(seed + 50))
    return start + 0.3 * pace * torch.arange(T)[:, None, None, None] + 0.05 * noise


def test_a_ridge_does_not_diverge_where_targets_are_larger_than_what_the_predictor_sees() -> None:
    """1.1 times as large. A map of the next step that is fed its own predictions multiplies that horizon by horizon."""
    errors = []
    for gap in (1.0, 1.1):
        train, val = (clips(moving(count, seed=seed)) for count, seed in ((256, 1), (64, 2)))
        train, val = (replace(batch, targets=batch.latents * gap) if gap > 1 else batch for batch in (train, val))
        fitted = fit_baselines([train], seen_until=range(T), ridge_steps=3)
        result = evaluate(copy_last, [val], seen_until=range(T), fingerprint="", baselines=fitted)
        found = [horizon.baselines["ridge"].error for horizon in result.horizons]
        errors.append(torch.tensor(found) * (result.target_variance or 1.0) / gap**2)
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-3, atol=1e-6)
    assert errors[0].max() < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_a_ridge_is_no_worse_than_the_dataset_mean_where_it_was_fitted(seed: int) -> None:
    """Noise around a mean of each position: nothing to see in a context, and everything to overfit."""
    generator = torch.Generator().manual_seed(seed)
    batch = clips(torch.randn(40, T, H, W, D, generator=generator) + 3 * torch.randn(H, W, D, generator=generator))
    fitted = fit_baselines([batch], seen_until=range(T), ridge_steps=3)
    result = evaluate(copy_last, [batch], seen_until=range(T), fingerprint="", baselines=fitted)
    for horizon in result.horizons:
        assert horizon.baselines["ridge"].error < 1.03 * horizon.baselines["dataset_mean"].error


def rows_of(moments: RidgeMoments) -> float:
    return sum(sums.sum().item() for (_, _, name), sums in moments.sums().items() if name == "counts")


def test_ridge_learns_from_at_most_so_many_rows_of_a_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flcache.evaluation.ridge.ROWS_PER_CLIP", 10)
    train, val = clips(autoregressive(64, seed=0)), clips(autoregressive(3, seed=1))
    moments = RidgeMoments(2, T - CONTEXT)
    moments.add(train, range(1, T))
    assert 5 * 64 <= rows_of(moments) <= 12 * 64
    prediction = moments.fit()(val.context, val.context_times, val.target_times)
    torch.testing.assert_close(prediction, val.target, atol=1e-2, rtol=1e-2)


def test_padding_and_illegal_boundaries_teach_the_ridge_nothing() -> None:
    """The law holds at steps 4 and 5 alone; elsewhere is garbage, which is padded or not legal."""
    batch = clips(autoregressive(32, seed=0), valid_steps=6)
    batch.latents[:, 6:] = 1e6
    moments = RidgeMoments(2, 3)
    moments.add(batch, [4, 6])
    assert rows_of(moments) == 32 * H * W
    ridge = moments.fit()
    predicted = ridge(batch.latents[:, 2:4], batch.times[:, 2:4], batch.times[:, 4:7])
    torch.testing.assert_close(predicted[:, 0], batch.latents[:, 4], atol=1e-3, rtol=1e-3)
    assert torch.equal(predicted[:, 2], predicted[:, 0]), "no clip reaches that far: the furthest map that there is"


def test_clips_that_end_early_teach_what_they_have() -> None:
    """Half of the clips end after one target; the law is found for all horizons, from both halves for the first."""
    whole, short = clips(autoregressive(32, seed=0)), clips(autoregressive(32, seed=2), valid_steps=CONTEXT + 1)
    short.latents[:, CONTEXT + 1 :] = 1e6
    val = clips(autoregressive(3, seed=1))
    ridge = fit_baselines([whole, short], seen_until=range(T), ridge_steps=2)["ridge"]
    prediction = ridge(val.context, val.context_times, val.target_times)
    torch.testing.assert_close(prediction, val.target, atol=1e-3, rtol=1e-3)


def test_ridge_looks_no_further_back_than_the_context_goes_and_no_further_ahead_than_is_asked() -> None:
    batch = random_clips(9)
    ridge = fit_baselines([batch], seen_until=range(T), ridge_steps=7, horizons=2)["ridge"]
    assert isinstance(ridge, Ridge) and ridge.steps == CONTEXT and len(ridge.weights) == 2
    assert ridge(batch.context, batch.context_times, batch.target_times[:, :2]).shape == (9, 2, H, W, D)


def test_all_have_names_and_shapes() -> None:
    batch = random_clips(9)
    fitted = fit_baselines([batch], seen_until=range(T), ridge_steps=3)
    assert list(fitted) == ["copy_last", "mean_of_context", "linear", "dataset_mean", "ridge"]
    assert list(fitted)[:3] == list(BASELINES)
    for predict in fitted.values():
        prediction = predict(batch.context, batch.context_times, batch.target_times[:, :2])
        assert prediction.shape == (9, 2, H, W, D) and prediction.isfinite().all()


def test_baselines_obey_the_leak_rule() -> None:
    with pytest.raises(LeakError, match="has already seen step 7"):
        fit_baselines([random_clips(3)], seen_until=[T - 1] * T, ridge_steps=1)
    assert fit_baselines([random_clips(3)], seen_until=[T - 1] * T, ridge_steps=1, allow_leak=True)


def test_nothing_to_fit_to_is_an_error() -> None:
    with pytest.raises(DataError, match="no training clips"):
        fit_baselines([], seen_until=range(T), ridge_steps=1)
    with pytest.raises(DataError, match="padding"):
        fit_baselines([clips(torch.zeros(2, T, H, W, D), valid_steps=0)], seen_until=range(T), ridge_steps=1)
    with pytest.raises(DataError, match="has 4 steps that are not padding"):
        fit_baselines([clips(torch.zeros(2, T, H, W, D), valid_steps=2)], seen_until=range(T), ridge_steps=3)
