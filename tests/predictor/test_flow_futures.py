"""Two equally likely futures: the flow samples both, where the causal predictor answers with neither."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from flcache.predictor import Predictor, PredictorOptions, build_predictor
from flcache.predictor.flow_matching import FlowMatchingPredictor

D = 4
SMALL = {"depth": 1, "width": 32, "heads": 2, "mlp_width": 64, "merge": 1}
MODES = torch.tensor([[1.5, -1.0, 0.5, 1.0], [-1.5, 1.0, 0.5, -1.0]])


def fork(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents (B, 3, 1, 1, D): two steps of a context, then one of two futures, at times (B, 3)."""
    generator = torch.Generator().manual_seed(seed)
    context = 0.3 * torch.randn(count, 2, 1, 1, D, generator=generator)
    chosen = MODES[torch.randint(2, (count,), generator=generator)][:, None, None, None]
    return torch.cat((context, context[:, -1:] + chosen), dim=1), torch.arange(3.0).expand(count, 3) / 4


def trained(kind: str, loss: Callable[[Predictor, Tensor, Tensor], Tensor], steps: int) -> Predictor:
    torch.manual_seed(0)
    model = build_predictor(PredictorOptions(kind, "tiny", SMALL), (3, 1, 1, D))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        optimiser.zero_grad()
        loss(model, *fork(128, step)).backward()
        optimiser.step()
    return model.eval()


def flow_loss(model: Predictor, latents: Tensor, times: Tensor) -> Tensor:
    assert isinstance(model, FlowMatchingPredictor)
    ends, progress = model.noisy_ends(latents[:, :2], times[:, :2], latents[:, 2:], times[:, 2:])
    weights = (1 - progress).clamp(min=0.05) ** -2
    return ((ends - latents[:, 2:]).square().mean(dim=(1, 2, 3, 4)) * weights).mean()


def squared_loss(model: Predictor, latents: Tensor, times: Tensor) -> Tensor:
    return (model.predict(latents[:, :2], times[:, :2], times[:, 2:]) - latents[:, 2:]).square().mean()


@torch.no_grad()
def distances(model: Predictor) -> tuple[Tensor, Tensor]:
    """Of predictions to both futures, (B, 2), and to the point between them, (B,); the futures are 4.1 apart."""
    latents, times = fork(400, -1)
    changes = (model.predict(latents[:, :2], times[:, :2], times[:, 2:]) - latents[:, 1:2]).reshape(-1, D)
    return torch.cdist(changes, MODES), (changes - MODES.mean(0)).norm(dim=1)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_flow_samples_both_futures_and_causal_lands_between(sampler: str, flow: Predictor, causal: Predictor) -> None:
    assert isinstance(flow, FlowMatchingPredictor)
    flow.flow = type(flow.flow)(sampler=sampler, sampler_steps=12)  # type: ignore[arg-type]
    to_modes, _ = distances(flow)
    assert (to_modes.min(dim=1).values < 0.6).float().mean() > 0.9
    share = (to_modes[:, 0] < to_modes[:, 1]).float().mean()
    assert 0.35 < share < 0.65
    to_modes, between = distances(causal)
    assert between.median() < 0.5
    assert to_modes.min() > 1.2


@pytest.fixture(scope="module")
def flow() -> Predictor:
    return trained("flow_matching", flow_loss, 300)


@pytest.fixture(scope="module")
def causal() -> Predictor:
    return trained("causal", squared_loss, 120)


@torch.no_grad()
def test_a_future_depends_on_its_seed_and_not_on_the_clips_beside_it(flow: Predictor) -> None:
    """Of ours, which samples all clips at once, and of any other generative predictor."""
    latents, times = fork(6, 1)
    given = latents[:, :2], times[:, :2], times[:, 2:]
    seeds = list(range(10, 16))
    for sample in (flow.sample, partial(Predictor.sample, flow)):
        together = sample(*given, seeds)
        torch.rand(3)  # what else is drawn does not matter
        assert torch.equal(sample(*given, seeds), together)
        alone = [sample(*(part[clip : clip + 1] for part in given), seeds[clip : clip + 1]) for clip in range(6)]
        torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)
        others = sample(*given, [seed + 100 for seed in seeds])
        assert ((others - together).abs().amax(dim=(1, 2, 3, 4)) > 1e-3).all()
