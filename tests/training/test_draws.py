"""What a training step draws at random, on any number of processes and after any resume."""

from __future__ import annotations

import random

import numpy as np
import torch

from flcache.training.draws import drawn_order, seed_noise, slices_seed


def noise(process: int, draw: int = 3, seed: int = 1) -> tuple[float, ...]:
    seed_noise(seed=seed, draw=draw, process=process)
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_noise_differs_between_processes_draws_and_seeds_and_repeats() -> None:
    found = [noise(0), noise(1), noise(0, draw=4), noise(0, seed=2)]
    for kind in zip(*found, strict=True):
        assert len(set(kind)) == 4
    assert noise(0) == found[0]


def test_boundaries_follow_from_seed_and_draw_alone() -> None:
    orders = [drawn_order([2, 4, 6], seed=1, draw=draw) for draw in range(3000)]
    torch.manual_seed(7)
    assert [drawn_order([2, 4, 6], seed=1, draw=draw) for draw in range(3000)] == orders
    assert all(sorted(order) == [2, 4, 6] for order in orders)
    for boundary in (2, 4, 6):
        assert 900 < sum(order[0] == boundary for order in orders) < 1100
    assert drawn_order([2, 4, 6], seed=2, draw=0) != orders[0] or drawn_order([2, 4, 6], seed=3, draw=0) != orders[0]


def test_slices_differ_between_draws_and_seeds() -> None:
    assert len({slices_seed(seed=seed, draw=draw) for seed in range(10) for draw in range(100)}) == 1000
