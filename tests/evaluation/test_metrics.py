"""Metrics agree with direct formulas in float64, skip padding, and make no skill out of rounding."""

from __future__ import annotations

import pytest
import torch

from flcache.evaluation.metrics import (
    NOISE,
    ChannelVariance,
    join,
    mean_over_clips,
    mean_square,
    noise_level,
    score,
    skill,
)

SHAPE = (3, 2, 2, 2, 5)  # (B, K, H, W, D)


def test_scores_equal_direct_formulas() -> None:
    prediction, target = torch.randn(2, *SHAPE)
    scores = score(prediction, target)
    guess, truth = prediction.double(), target.double()
    for clip in range(3):
        for horizon in range(2):
            p, t = guess[clip, horizon], truth[clip, horizon]
            cosine = ((p * t).sum(-1) / (p.square().sum(-1).sqrt() * t.square().sum(-1).sqrt())).mean()
            assert scores.error[clip, horizon].item() == pytest.approx((p - t).square().mean().item(), rel=1e-6)
            assert scores.l1[clip, horizon].item() == pytest.approx((p - t).abs().mean().item(), rel=1e-6)
            assert scores.cosine[clip, horizon].item() == pytest.approx(cosine.item(), abs=1e-6)
    assert mean_square(target)[1, 1].item() == pytest.approx(truth[1, 1].square().mean().item(), rel=1e-6)
    assert scores.error.dtype == torch.float64


def test_half_precision_is_scored_in_full() -> None:
    target = torch.full(SHAPE, 300.0)
    assert score(torch.zeros(SHAPE, dtype=torch.float16), target).error.unique().tolist() == [90_000.0]


def test_batches_join_into_what_one_batch_gives() -> None:
    prediction, target = torch.randn(2, *SHAPE)
    parts = join([score(prediction[:1], target[:1]), score(prediction[1:], target[1:])])
    torch.testing.assert_close(parts.error, score(prediction, target).error)
    torch.testing.assert_close(parts.cosine, score(prediction, target).cosine)


def test_means_take_valid_clips_only() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [5.0, torch.nan, 7.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    means = mean_over_clips(values, valid)
    assert means[:2].tolist() == [3.0, 2.0]
    assert means[2].isnan()


@pytest.mark.parametrize(
    ("error", "baseline_error", "expected"),
    [
        (0.25, 1.0, 0.75),
        (2.0, 1.0, -1.0),
        (0.0, 0.0, 0.0),
        (1e-9, 1e-12, 0.0),  # both rounding: neither is worse
        (1e-12, 1e-9, 0.0),
        (0.5, 0.0, 1 - 0.5 / (NOISE * 2.0)),  # worse than noise is worse
        (0.0, 1.0, 1 - NOISE * 2.0),
    ],
)
def test_skill(error: float, baseline_error: float, expected: float) -> None:
    errors = [torch.tensor([value], dtype=torch.float64) for value in (error, baseline_error)]
    assert skill(*errors, noise_level(torch.tensor([2.0], dtype=torch.float64))).item() == pytest.approx(
        expected, abs=1e-12
    )


def test_skill_without_any_signal_is_zero() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert skill(zero, zero, noise_level(zero)).item() == 0


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_not_finite_is_no_skill(broken: float) -> None:
    one = torch.ones(2, dtype=torch.float64)
    some = torch.tensor([1.0, broken], dtype=torch.float64)
    for found in (skill(some, 2 * one, noise_level(one)), skill(one, some + 1, noise_level(one))):
        assert found[0] == 0.5 and found[1].isnan()


def test_variance_is_within_channels() -> None:
    latents = torch.randn(3, 40, 5) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) + 10 * torch.arange(5)
    found = ChannelVariance()
    for part in latents:
        found.add(part)
    expected = latents.flatten(0, 1).double().var(0, unbiased=False).mean()
    assert found.value() == pytest.approx(expected.item(), rel=1e-4)
    assert ChannelVariance().value() != ChannelVariance().value(), "NaN"
