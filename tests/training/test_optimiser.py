"""The optimiser: which parameters train and decay, and the course of the learning rate."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from flcache.errors import TrainingError
from flcache.predictor import PredictorOptions, build_predictor
from flcache.training.optimiser import build_optimiser, learning_rate_schedule, parameter_lines
from flcache.training.options import Schedule, TrainingOptions


class Encoder(nn.Module):
    """One parameter of every sort."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 2)
        self.positions = nn.Embedding(5, 4)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 4)


def optimiser_of(**parts: nn.Module) -> torch.optim.AdamW:
    return build_optimiser(parts, TrainingOptions(learning_rate=1.0, weight_decay=0.1))


def schedule_options(steps: int, warmup_steps: int, least: float) -> TrainingOptions:
    return TrainingOptions(steps=steps, warmup_steps=warmup_steps, min_learning_rate_fraction=least)


def groups(optimiser: torch.optim.AdamW) -> dict[float, set[nn.Parameter]]:
    return {group["weight_decay"]: set(group["params"]) for group in optimiser.param_groups}


def test_only_matrices_decay() -> None:
    encoder = Encoder()
    found = groups(optimiser_of(encoder=encoder))
    assert found[0.1] == {encoder.patches.weight, encoder.out.weight}
    assert found[0.0] == set(encoder.parameters()) - found[0.1]


def test_frozen_and_shared_parameters() -> None:
    frozen, shared = Encoder().requires_grad_(False), nn.Linear(2, 2)
    found = groups(optimiser_of(encoder=frozen, first=shared, second=shared))
    assert found == {0.1: {shared.weight}, 0.0: {shared.bias}}
    with pytest.raises(TrainingError, match="nothing to train: every parameter of encoder is frozen"):
        optimiser_of(encoder=frozen)


def test_every_predictor_parameter_is_in_one_group() -> None:
    model = build_predictor(PredictorOptions(preset="tiny"), (4, 2, 2, 8))
    found = groups(optimiser_of(predictor=model))
    assert found[0.1] | found[0.0] == set(model.parameters())
    assert not found[0.1] & found[0.0]
    assert found[0.1] == {parameter for parameter in model.parameters() if parameter.ndim == 2}


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    optimiser = optimiser_of(layer=nn.Linear(1, 1))
    schedule = learning_rate_schedule(optimiser, schedule_options(11, 4, 0.1))
    rates = []
    for _ in range(13):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[7] == pytest.approx(0.55)
    assert rates[10:] == pytest.approx([0.1, 0.1, 0.1])
    assert rates[4:11] == sorted(rates[4:11], reverse=True)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("wsd", [0.5, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1, 0.1]),
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_rate_is_stable_after_the_warm_up(schedule: Schedule, rates: list[float]) -> None:
    """Over 10 steps, of which `wsd` falls over the last 4."""
    options = replace(schedule_options(10, 2, 0.1), schedule=schedule, decay_fraction=0.4)
    found = learning_rate_schedule(optimiser_of(layer=nn.Linear(1, 1)), options)
    for rate in rates:
        assert found.get_last_lr() == pytest.approx([rate, rate])
        found.optimizer.step()
        found.step()


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("warmup_steps", [0, 1, 5, 9])
def test_any_warm_up_fits_any_length(warmup_steps: int, schedule: Schedule) -> None:
    optimiser = optimiser_of(layer=nn.Linear(1, 1))
    options = replace(schedule_options(5, warmup_steps, 0.0), schedule=schedule)
    found = learning_rate_schedule(optimiser, options)
    for _ in range(5):
        assert 0 <= found.get_last_lr()[0] <= 1
        optimiser.step()
        found.step()


def test_schedule_continues_from_its_state() -> None:
    first = learning_rate_schedule(optimiser_of(layer=nn.Linear(1, 1)), schedule_options(20, 4, 0.1))
    first.optimizer.step()
    first.step()
    second = learning_rate_schedule(optimiser_of(layer=nn.Linear(1, 1)), schedule_options(20, 4, 0.1))
    second.load_state_dict(first.state_dict())
    second.optimizer.step()
    second.step()
    assert second.get_last_lr() == pytest.approx([0.75, 0.75])


def test_parameters_are_counted_by_part() -> None:
    with torch.device("meta"):
        parts = {"encoder": Encoder().requires_grad_(False), "predictor": nn.Linear(1000, 9)}
    assert 52 + 20 + 4 + 8 + 20 == 104
    assert [line.split() for line in parameter_lines(parts)] == [
        ["total", "trainable"],
        ["encoder", "104", "0"],
        ["predictor", "9,009", "9,009"],
        ["together", "9,113", "9,009"],
    ]


def test_weights_too_coarse_to_train_are_refused() -> None:
    """In bfloat16 most steps of an optimiser, and nearly all of a moving average, round to nothing."""
    coarse = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    assert torch.equal(coarse.lerp(coarse + 0.1, 0.002), coarse)
    layer = nn.Linear(2, 2).bfloat16()
    with pytest.raises(TrainingError, match=r"set encoder\.dtype=float32, and training\.precision=bf16"):
        optimiser_of(frozen=nn.Linear(2, 2).bfloat16().requires_grad_(False), encoder=layer)
    optimiser_of(frozen=layer.requires_grad_(False), predictor=nn.Linear(2, 2))
