"""Rotary positions: attention scores depend on differences of time, row and column only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flcache.predictor.rotary import rotate, rotation


def scores(times: Tensor, height: int, width: int) -> Tensor:
    """(L, L) products of one query and one key, each placed at every token."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 32, generator=generator)
    by = rotation(times, height, width, 32)
    tokens = by[0].shape[1]
    queries, keys = rotate(query.expand(1, tokens, 1, 32), by), rotate(key.expand(1, tokens, 1, 32), by)
    return queries[0, :, 0] @ keys[0, :, 0].T


def test_scores_depend_on_time_differences_only() -> None:
    times = torch.tensor([[0.0, 0.4, 1.1]])
    torch.testing.assert_close(scores(times, 2, 2), scores(times + 3.0, 2, 2), atol=1e-4, rtol=0)


def test_equal_time_differences_score_alike_at_any_frame_rate() -> None:
    slow, fast = torch.tensor([[0.0, 0.5]]), torch.tensor([[0.0, 0.25, 0.5]])
    torch.testing.assert_close(scores(slow, 1, 1)[1, 0], scores(fast, 1, 1)[2, 0])
    assert not torch.isclose(scores(slow, 1, 1)[1, 0], scores(fast, 1, 1)[1, 0], rtol=1e-3)


def test_scores_depend_on_grid_differences_only() -> None:
    grid = scores(torch.zeros(1, 1), 4, 5).reshape(4, 5, 4, 5)
    torch.testing.assert_close(grid[0, 0, 2, 3], grid[1, 1, 3, 4])
    assert not torch.isclose(grid[0, 0, 2, 3], grid[0, 0, 3, 2], rtol=1e-3)


def test_rotation_keeps_lengths_and_type() -> None:
    by = rotation(torch.tensor([[0.0, 7.3]]), 3, 2, 12)
    channels = torch.randn(1, 12, 4, 12)
    torch.testing.assert_close(rotate(channels, by).norm(dim=-1), channels.norm(dim=-1))
    assert rotate(channels.bfloat16(), by).dtype == torch.bfloat16


@pytest.mark.parametrize("head_dim", [6, 8, 32, 64])
def test_every_head_size_has_all_three_axes(head_dim: int) -> None:
    cosine, _ = rotation(torch.tensor([[0.0, 0.1]]), 2, 2, head_dim)
    tokens = cosine.reshape(2, 2, 2, head_dim // 2)
    assert not torch.equal(tokens[0, 0, 0], tokens[1, 0, 0])
    assert not torch.equal(tokens[0, 0, 0], tokens[0, 1, 0])
    assert not torch.equal(tokens[0, 0, 0], tokens[0, 0, 1])
