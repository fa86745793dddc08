"""The watch over a trainable encoder's latents: hand-computed cases, and what stops a run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flcache.errors import TrainingError
from flcache.training.collapse import check_collapse, latent_health


def as_clips(tokens: torch.Tensor) -> torch.Tensor:
    """(N, D) as N clips of one token."""
    return tokens[:, None, None, None]


def test_the_rank_of_equal_directions_is_their_number() -> None:
    """Tokens +e_i and -e_i for 3 of 8 channels: three equal singular values, so exp(entropy) is 3."""
    tokens = torch.cat([torch.eye(8)[:3], -torch.eye(8)[:3]])
    assert latent_health(as_clips(tokens)).rank == pytest.approx(3.0, rel=1e-4)


def test_unequal_directions_by_the_formula() -> None:
    """Singular values 3 and 1, times a common factor: shares 3/4 and 1/4."""
    tokens = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert latent_health(as_clips(tokens)).rank == pytest.approx(math.exp(entropy), rel=1e-4)


def test_deviation_is_that_of_the_channels() -> None:
    tokens = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert latent_health(as_clips(tokens)).deviation == pytest.approx(2.5, rel=0.1)


def test_healthy_latents_pass_and_collapsed_ones_stop_the_run() -> None:
    latents = torch.randn(2, 4, 3, 3, 16, generator=torch.Generator().manual_seed(0))
    start = latent_health(latents)
    check_collapse(latent_health(latents * 0.5), start, step=50)
    with pytest.raises(TrainingError, match="step 50: the latents are collapsing: their deviation fell"):
        check_collapse(latent_health(latents * 0.01), start, step=50)
    line = latents[..., :1] * torch.ones(16)
    with pytest.raises(TrainingError, match="their rank fell"):
        check_collapse(latent_health(line), start, step=50)


def test_latents_that_stop_changing_in_time_stop_the_run() -> None:
    """Equal steps are spread over clips and places as before: deviation and rank pass."""
    latents = torch.randn(8, 6, 4, 4, 16, generator=torch.Generator().manual_seed(0))
    start = latent_health(latents)
    assert start.change == pytest.approx(5 / 6, rel=0.05)
    still = latent_health(latents[:, :1].expand_as(latents))
    assert still.deviation == pytest.approx(start.deviation, rel=0.05) and still.change == 0
    with pytest.raises(TrainingError, match="their change fell from"):
        check_collapse(still, start, step=50)
    check_collapse(latent_health(latents * torch.tensor([1.0, *[0.9] * 5])[:, None, None, None]), start, step=50)


def test_a_start_from_before_changes_were_watched_never_stops() -> None:
    latents = torch.randn(2, 4, 3, 3, 16, generator=torch.Generator().manual_seed(0))
    start = replace(latent_health(latents), change=0.0)
    check_collapse(latent_health(latents[:, :1].expand_as(latents)), start, step=50)
