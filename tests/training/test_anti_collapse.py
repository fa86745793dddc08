"""SIGReg and VICReg against their formulas, and what they say of latents that collapse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flcache.training.anti_collapse import _slices, anti_collapse, sigreg, vicreg

SHAPE = (4, 5, 3, 3, 6)


def gaussian(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def all_valid(latents: Tensor) -> Tensor:
    return torch.ones(latents.shape[:2], dtype=torch.bool)


def epps_pulley(values: np.ndarray) -> float:
    """The integral on a grid 100 times as fine, from -3 to 3, of tokens that were projected."""
    t = np.linspace(-3, 3, 3201)
    phi = np.exp(1j * t * values[:, None]).mean(0)
    return float(np.trapezoid(np.abs(phi - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2), t))


def test_sigreg_is_the_mean_statistic_of_epps_and_pulley() -> None:
    latents = gaussian() * 1.7 + 0.3
    projected = latents.flatten(0, -2).double() @ _slices(SHAPE[-1], 5, latents.device).double()
    expected = np.mean([epps_pulley(column) for column in projected.numpy().T])
    assert sigreg(latents, all_valid(latents), 5).item() == pytest.approx(expected, rel=1e-3)
    assert torch.allclose(_slices(SHAPE[-1], 5, latents.device).norm(dim=0), torch.ones(256))


def test_sigreg_is_least_for_an_isotropic_gaussian() -> None:
    tokens = gaussian(shape=(64, 8, 4, 4, 6))
    line = tokens[..., :1] * torch.ones(6)
    found = {
        name: sigreg(latents, all_valid(latents), 3).item()
        for name, latents in {
            "gaussian": tokens, "half": tokens / 2, "double": 2 * tokens, "shifted": tokens + 1, "line": line,
            "none": 0 * tokens,
        }.items()
    }  # fmt: skip
    assert found["gaussian"] < 1e-3 and min(found[name] for name in found if name != "gaussian") > 0.02
    assert found["none"] == max(found["none"], found["half"], found["gaussian"])


def test_slices_are_a_function_of_the_seed() -> None:
    latents = gaussian()
    found = [sigreg(latents, all_valid(latents), seed).item() for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_vicreg_by_hand() -> None:
    """Two channels of unbiased variances 4/3 and 1/3 and covariance 2/3: one hinge of 1 - sqrt(1/3)."""
    tokens = torch.tensor([[1.0, 0.5], [-1.0, -0.5], [1.0, 0.5], [-1.0, -0.5]])[:, None, None, None]
    hinge, covariance = 1 - math.sqrt(1 / 3 + 1e-4), 2 / 3
    expected = hinge / 2 + (2 * covariance**2 / 2) / 25
    assert vicreg(tokens, all_valid(tokens)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["sigreg", "vicreg"])
def test_padding_does_not_count(kind: str) -> None:
    latents = gaussian() * 0.5
    valid = all_valid(latents)
    valid[:, 3:] = False
    padded = latents.clone()
    padded[:, 3:] = 50.0
    expected = anti_collapse(kind, latents[:, :3], valid[:, :3], 1)  # type: ignore[arg-type]
    assert anti_collapse(kind, padded, valid, 1).item() == pytest.approx(expected.item(), rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sigreg", "vicreg"])
def test_its_gradient_spreads_latents_that_have_collapsed(kind: str) -> None:
    latents = (0.1 * gaussian()[..., :1] * torch.ones(6) + 0.01 * gaussian(1)).requires_grad_()
    optimiser = torch.optim.Adam([latents], lr=0.02)
    for step in range(300):
        optimiser.zero_grad()
        anti_collapse(kind, latents, all_valid(latents), step).backward()  # type: ignore[arg-type]
        optimiser.step()
    tokens = latents.detach().flatten(0, -2)
    assert tokens.std(0).min() > 0.8
    assert torch.linalg.svdvals(tokens - tokens.mean(0)).div(len(tokens) ** 0.5).min() > 0.5


@pytest.mark.parametrize("kind", ["sigreg", "vicreg"])
def test_it_is_computed_in_float32_whatever_the_precision_of_training(kind: str) -> None:
    latents = gaussian()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = anti_collapse(kind, latents, all_valid(latents), 1)  # type: ignore[arg-type]
    assert inside.dtype == torch.float32 and inside == anti_collapse(kind, latents, all_valid(latents), 1)  # type: ignore[arg-type]
