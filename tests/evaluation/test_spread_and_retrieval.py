"""Blur, collapse and retrieval: hand-computed cases, direct formulas in float64, and bounded memory."""

from __future__ import annotations

import math

import pytest
import torch

from flcache.evaluation import spread
from flcache.evaluation.metrics import join, mean_square
from flcache.evaluation.retrieval import Gallery, ranks, sketch
from flcache.evaluation.sampling import score_samples
from flcache.evaluation.spread import SpreadMoments, effective_rank

SHAPE = (6, 2, 2, 3, 5)  # (B, K, H, W, D)
ALL = torch.ones(6, 2, dtype=torch.bool)


def test_rankme_of_a_case_computed_by_hand() -> None:
    """Singular values 3 and 1 have shares 3/4 and 1/4: exp(-(3/4 ln 3/4 + 1/4 ln 1/4)) = 4 / 27 ** (1/4)."""
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    matrix = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64) @ turn
    assert effective_rank(matrix.T @ matrix) == pytest.approx(4 / 27**0.25, abs=1e-5)


def test_rankme_goes_from_one_direction_to_all() -> None:
    one = torch.ones(1, 8, dtype=torch.float64)
    assert effective_rank(one.T @ one) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.eye(8, dtype=torch.float64)) == pytest.approx(8, abs=1e-4)
    assert math.isnan(effective_rank(torch.zeros(3, 3, dtype=torch.float64)))
    assert math.isnan(effective_rank(torch.full((3, 3), torch.inf, dtype=torch.float64)))


def test_spread_equals_direct_formulas() -> None:
    prediction, truth = torch.randn(2, *SHAPE)
    valid = ALL.clone()
    valid[4:, 1] = False
    moments = SpreadMoments()
    moments.add(prediction[:2], truth[:2], valid[:2], first=0)
    moments.add(prediction[2:], truth[2:], valid[2:], first=2)
    for k, found in enumerate(moments.finish()):
        guess, true = (latents[valid[:, k], k].double() for latents in (prediction, truth))
        assert found.variance_ratio == pytest.approx((guess.var(0).sum() / true.var(0).sum()).item(), rel=1e-9)
        for latents, rank in ((guess, found.prediction_rank), (true, found.truth_rank)):
            values = torch.linalg.svdvals(latents.reshape(-1, 5))
            shares = values / values.sum()
            assert rank == pytest.approx(math.exp(-(shares * shares.log()).sum()), rel=1e-5)


def test_blur_and_collapse_show() -> None:
    truth = torch.randn(SHAPE)
    for prediction, ratio in ((truth / 2, 0.25), (truth[:1].expand_as(truth), 0.0), (truth + 3, 1.0)):
        moments = SpreadMoments()
        moments.add(prediction, truth, ALL, first=0)
        assert moments.finish()[0].variance_ratio == pytest.approx(ratio, abs=1e-6)


def test_a_horizon_of_one_clip_has_no_variance() -> None:
    moments, valid = SpreadMoments(), ALL.clone()
    valid[1:, 1] = False
    moments.add(torch.randn(SHAPE), torch.randn(SHAPE), valid, first=0)
    assert math.isnan(moments.finish()[1].variance_ratio)


def test_only_the_first_clips_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, truth = torch.randn(2, *SHAPE)
    monkeypatch.setattr(spread, "MAX_CLIPS", 4)
    monkeypatch.setattr("flcache.evaluation.retrieval.MAX_CLIPS", 4)
    few, all_, gallery = SpreadMoments(), SpreadMoments(), Gallery()
    few.add(prediction[:4], truth[:4], ALL[:4], first=0)
    for part in (slice(0, 3), slice(3, 6)):
        all_.add(prediction[part], truth[part], ALL[part], part.start)
        gallery.add(prediction[part], truth[part], ALL[part], part.start)
    assert [found.variance_ratio for found in all_.finish()] == pytest.approx(
        [found.variance_ratio for found in few.finish()]
    )
    assert gallery.finish()[0].gallery == 4


def test_ranks_equal_sorting_all_distances() -> None:
    predictions, truths = torch.randn(2, 30, 7)
    distances = torch.cdist(predictions.double(), truths.double())
    expected = [int((row < row[index]).sum()) for index, row in enumerate(distances)]
    assert ranks(predictions, truths).tolist() == expected


def test_retrieval_counts_valid_clips_only() -> None:
    truth = torch.randn(SHAPE)
    valid = ALL.clone()
    valid[3:, 1] = False
    truth[3:, 1] = torch.nan
    gallery = Gallery()
    gallery.add(truth + 0.01 * torch.randn(SHAPE), truth, valid, first=0)
    first, second = gallery.finish()
    assert (first.at_1, first.at_5, first.gallery) == (1.0, 1.0, 6)
    assert (second.at_1, second.gallery) == (1.0, 3)


def test_what_is_equally_near_does_not_count_as_found() -> None:
    """A prediction that is the same for all clips of equal latents finds none of them."""
    gallery = Gallery()
    gallery.add(torch.zeros(SHAPE), torch.ones(SHAPE), ALL, first=0)
    assert gallery.finish()[0].at_1 == 0


def test_a_sketch_keeps_distances() -> None:
    latents = torch.randn(6, 1, 16, 16, 64)
    short = sketch(latents)
    assert short.shape == (6, 1, 8192)
    exact, kept = (torch.pdist(values.flatten(1).double()).square() for values in (latents, short))
    assert (kept / exact - 1).abs().max() < 0.06
    assert torch.equal(sketch(latents[..., :1]), latents[..., :1].flatten(2))


def test_samples_are_scored_by_the_formulas() -> None:
    samples, target = torch.randn(4, *SHAPE), torch.randn(SHAPE)
    found = join([score_samples(samples[:, part], target[part]) for part in (slice(0, 2), slice(2, 6))])
    errors = (samples.double() - target.double()).square().flatten(3).mean(3)
    torch.testing.assert_close(found.best, errors.amin(0), rtol=1e-5, atol=1e-6)
    mean = samples.double().mean(0)
    torch.testing.assert_close(found.mean, (mean - target).square().flatten(2).mean(2), rtol=1e-5, atol=1e-6)
    variance = samples.double().var(0).flatten(2).mean(2)
    torch.testing.assert_close(found.diversity, variance, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.expected, found.mean - variance / 4, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.single, errors[0], rtol=1e-5, atol=1e-6)
    flat = samples.double().flatten(3)  # (S, B, K, P)
    distances = (flat[:, None] - flat).square().mean(-1).sqrt()  # (S, S, B, K)
    energy = errors.sqrt().mean(0) - distances.sum((0, 1)) / (2 * 4 * 3)
    torch.testing.assert_close(found.energy, energy, rtol=1e-5, atol=1e-6)


def test_the_energy_score_is_least_for_the_true_distribution() -> None:
    """Without bias from the number of samples; a sampler that is too sure or too wild pays, as does a certain mean."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(2000, 1, 1, 1, 4, generator=generator)
    scores = {
        (spread, count): score_samples(spread * torch.randn(count, *truth.shape, generator=generator), truth)
        .energy.mean()
        .item()
        for spread, count in ((1.0, 2), (1.0, 16), (0.5, 16), (2.0, 16), (0.0, 2))
    }
    assert scores[1.0, 2] == pytest.approx(scores[1.0, 16], rel=0.02)
    assert scores[1.0, 16] < min(scores[0.5, 16], scores[2.0, 16], scores[0.0, 2])
    assert scores[0.0, 2] == pytest.approx(mean_square(truth).sqrt().mean().item())
