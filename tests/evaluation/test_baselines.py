"""Baselines without training: direct formulas, closed forms, and what they may look at."""

from __future__ import annotations

import pytest
import torch

from flcache.batch import LatentBatch
from flcache.errors import DataError, LeakError
from flcache.evaluation import BASELINES, fit_baselines
from flcache.evaluation.baselines import DatasetMean, linear_extrapolation, mean_of_context
from flcache.evaluation.ridge import Ridge, RidgeMoments

T, H, W, D = 8, 2, 3, 4
CONTEXT = 4


def clips(latents: torch.Tensor, *, valid_steps: int = T) -> LatentBatch:
    valid = (torch.arange(T) < valid_steps).expand(len(latents), T)
    times = 0.5 * torch.arange(T).expand(len(latents), T).float()
    return LatentBatch(latents, latents, times, valid, ("clip",) * len(latents), CONTEXT)


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


def test_ridge_solves_the_normal_equations_of_every_clip() -> None:
    """Against one least-squares problem over all rows at once, in float64, under the ridge that was chosen."""
    batch = random_clips(20)
    moments = RidgeMoments(D, 2)
    for start in range(0, 20, 6):
        moments.add(clips(batch.latents[start : start + 6]), range(1, T))
    ridge = moments.fit()
    latents = batch.latents.double()
    rows = torch.cat([torch.cat((latents[:, t - 2], latents[:, t - 1]), -1).flatten(0, 2) for t in range(2, T)])
    rows = torch.cat((rows, torch.ones(len(rows), 1)), dim=1)
    targets = torch.cat([latents[:, t].flatten(0, 2) for t in range(2, T)])
    gram = rows.T @ rows
    penalty = ridge.strength * gram.diagonal()[:-1].mean() * torch.eye(len(gram)).double()
    penalty[-1, -1] = 0
    expected = torch.linalg.solve(gram + penalty, rows.T @ targets)
    torch.testing.assert_close(ridge.weights.double(), expected, atol=1e-6, rtol=1e-5)


def test_ridge_finds_an_exact_law_and_follows_it_far_ahead() -> None:
    train, val = clips(autoregressive(32, seed=0)), clips(autoregressive(3, seed=1))
    ridge = fit_baselines([train], seen_until=range(T), ridge_steps=2)["ridge"]
    assert isinstance(ridge, Ridge) and ridge.strength == 1e-6
    prediction = ridge(val.context, val.context_times, val.target_times)
    torch.testing.assert_close(prediction, val.target, atol=1e-3, rtol=1e-3)


def test_noise_asks_for_a_strong_ridge() -> None:
    assert fit_baselines([random_clips(3)], seen_until=range(T), ridge_steps=3)["ridge"].strength >= 0.1  # type: ignore[attr-defined]


def test_ridge_learns_from_at_most_so_many_rows_of_a_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flcache.evaluation.ridge.ROWS_PER_CLIP", 10)
    train, val = clips(autoregressive(64, seed=0)), clips(autoregressive(3, seed=1))
    moments = RidgeMoments(D, 2)
    moments.add(train, range(1, T))
    assert 5 * 64 <= (moments._fitting + moments._held_out).rows <= 10 * 64
    prediction = moments.fit()(val.context, val.context_times, val.target_times)
    torch.testing.assert_close(prediction, val.target, atol=1e-2, rtol=1e-2)


def test_padding_and_illegal_splits_teach_the_ridge_nothing() -> None:
    """The law holds at steps 4 and 5 alone; elsewhere is garbage, which is padded or not legal."""
    batch = clips(autoregressive(32, seed=0), valid_steps=6)
    batch.latents[:, 6:] = 1e6
    moments = RidgeMoments(D, 2)
    moments.add(batch, [4, 6])
    rows = (moments._fitting + moments._held_out).rows
    assert rows == 32 * H * W
    ridge = moments.fit()
    predicted = ridge(batch.latents[:, 2:4], batch.times[:, 2:4], batch.times[:, 4:5])
    torch.testing.assert_close(predicted, batch.latents[:, 4:5], atol=1e-3, rtol=1e-3)


def test_ridge_looks_no_further_back_than_the_context_goes() -> None:
    ridge = fit_baselines([random_clips(9)], seen_until=range(T), ridge_steps=7)["ridge"]
    assert isinstance(ridge, Ridge) and ridge.steps == CONTEXT


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
