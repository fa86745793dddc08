"""The causal predictor: starts as a copy, never sees the future, rolls out step by step, and learns motion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flcache.errors import ConfigError
from flcache.predictor import PredictorOptions, build_predictor
from flcache.predictor.causal import CausalPredictor

T, H, W, D = 6, 4, 6, 8
SMALL = {"depth": 2, "width": 48, "heads": 2, "mlp_width": 96}


def predictor(*, merge: int = 1, untrained: bool = False) -> CausalPredictor:
    torch.manual_seed(0)
    model = build_predictor(PredictorOptions("causal", "tiny", {**SMALL, "merge": merge}), (T, H, W, D))
    if not untrained:
        nn.init.normal_(model.head.weight, std=0.1)  # a zero head would hide all that comes before it
    return model


def clips(count: int = 2, steps: int = T) -> tuple[Tensor, Tensor]:
    """Latents (B, T, H, W, D) and times (B, T) of unequal spacing."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(count, steps, H, W, D, generator=generator)
    return latents, torch.rand(count, steps, generator=generator).add(0.1).cumsum(1)


def later(times: Tensor) -> Tensor:
    """(B, T) the time of the step after each."""
    return torch.cat((times[:, 1:], times[:, -1:] + 0.5), dim=1)


@pytest.mark.parametrize("merge", [1, 2])
def test_untrained_predictor_copies_the_last_step_exactly(merge: int) -> None:
    latents, times = clips()
    model = predictor(merge=merge, untrained=True)
    assert torch.equal(model(latents, times, later(times)), latents)
    predicted = model.predict(latents[:, :3], times[:, :3], times[:, 3:])
    assert torch.equal(predicted, latents[:, 2:3].expand(-1, 3, -1, -1, -1))


def test_mixed_precision_keeps_the_copy_exact_and_the_prediction_close() -> None:
    latents, times = clips()
    model = predictor()
    with torch.autocast("cpu", torch.bfloat16):
        copied, predicted = predictor(untrained=True)(latents, times, later(times)), model(latents, times, later(times))
    assert torch.equal(copied, latents)
    torch.testing.assert_close(predicted, model(latents, times, later(times)), atol=0.1, rtol=0)


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("changed", range(1, T))
def test_predictions_do_not_see_later_steps(changed: int, merge: int) -> None:
    latents, times = clips()
    model, altered = predictor(merge=merge), latents.clone()
    altered[:, changed:] += torch.randn(2, T - changed, H, W, D)
    before, after = model(latents, times, later(times)), model(altered, times, later(times))
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.isclose(before[:, changed], after[:, changed]).all()


def test_predictions_do_not_see_later_steps_in_long_clips() -> None:
    """More tokens than go through attention at once, so that groups of steps meet."""
    model, (latents, times) = predictor(), clips(1, 24)
    altered = latents.clone()
    altered[:, 17:] = 100.0
    before, after = model(latents, times, later(times)), model(altered, times, later(times))
    assert torch.equal(before[:, :17], after[:, :17])


def test_every_past_step_matters() -> None:
    latents, times = clips()
    model = predictor()
    latents.requires_grad_()
    model(latents, times, later(times))[:, -1].square().sum().backward()
    assert latents.grad is not None
    assert (latents.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_rollout_equals_a_loop_that_computes_everything_anew() -> None:
    latents, times = clips()
    model = predictor()
    steps = latents[:, :3]
    for known in range(3, T):
        predicted = model(steps, times[:, :known], times[:, 1 : known + 1])[:, -1:]
        steps = torch.cat((steps, predicted), dim=1)
    rolled = model.predict(latents[:, :3], times[:, :3], times[:, 3:])
    torch.testing.assert_close(rolled, steps[:, 3:], atol=1e-5, rtol=0)


def test_key_value_cache_spares_the_steps_that_were_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 steps of context and 8 of rollout: 15 steps pass the layers, 92 without a cache."""
    latents, times = clips(1, 16)
    model, passed = predictor(), []
    forward = model.transformer.forward

    def counting(tokens: Tensor, *rest: object) -> object:
        passed.append(tokens.shape[1] // (H * W))
        return forward(tokens, *rest)

    monkeypatch.setattr(model.transformer, "forward", counting)
    model.predict(latents[:, :8], times[:, :8], times[:, 8:])
    assert passed == [8] + [1] * 7


def test_third_step_comes_from_the_predicted_second() -> None:
    """A published rollout fed the true or the wrong step (facebookresearch/vjepa2, pull request 25)."""
    latents, times = clips()
    model = predictor()
    second = model.predict(latents[:, :1], times[:, :1], times[:, 1:2])
    both = model.predict(latents[:, :1], times[:, :1], times[:, 1:3])
    third = model(torch.cat((latents[:, :1], second), 1), times[:, :2], times[:, 1:3])[:, 1:]
    torch.testing.assert_close(both, torch.cat((second, third), 1), atol=1e-5, rtol=0)


def test_rollout_carries_gradients_to_the_context() -> None:
    latents, times = clips()
    context = latents[:, :2].requires_grad_()
    predictor().predict(context, times[:, :2], times[:, 2:])[:, -1].sum().backward()
    assert context.grad is not None
    assert (context.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_predictions_do_not_depend_on_when_the_clip_starts() -> None:
    latents, times = clips()
    model = predictor()
    shifted = model(latents, times + 4096, later(times) + 4096)  # an hour in: float32 seconds keep 1/2048 there
    torch.testing.assert_close(shifted, model(latents, times, later(times)), atol=2e-2, rtol=0)


def test_clips_of_a_batch_do_not_meet() -> None:
    latents, times = clips()
    model = predictor()
    alone = model(latents[1:], times[1:], later(times)[1:])
    torch.testing.assert_close(model(latents, times, later(times))[1:], alone, atol=1e-5, rtol=0)


def test_irregular_times_matter() -> None:
    latents, times = clips()
    model = predictor()
    usual = model(latents, times, later(times))
    past = times.clone()
    past[:, 1] += 0.05
    assert not torch.allclose(model(latents, past, later(times))[:, -1], usual[:, -1], atol=1e-5)
    sooner = later(times) - 0.05
    assert not torch.allclose(model(latents, times, sooner)[:, -1], usual[:, -1], atol=1e-5)


def test_same_seed_same_predictor() -> None:
    first, second = predictor().state_dict(), predictor().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_merged_patches_must_tile_the_grid() -> None:
    latents, times = clips()
    with pytest.raises(ConfigError, match=r'3 x 6 patches; set "predictor.overrides.merge=1"'):
        predictor(merge=2)(latents[:, :, :3], times, later(times))


def drifting_waves(count: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents (B, T, H, W, D) of plane waves that drift with a velocity of each clip's own, and their times."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(H).float(), torch.arange(W).float(), indexing="ij")
    channels = torch.arange(D).float()
    velocity = 4 * torch.rand(count, 2, 1, 1, 1, 1, generator=generator) - 2  # patches per second
    times = 0.25 * torch.arange(steps).expand(count, steps)
    moved = times[..., None, None, None]
    y, x = rows[..., None] - velocity[:, 0] * moved, columns[..., None] - velocity[:, 1] * moved
    return (channels.cos() * y + channels.sin() * x + channels).sin() * 2**0.5, times


def test_learns_motion_it_can_only_infer_from_the_past() -> None:
    model = predictor(merge=2, untrained=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(200):
        latents, times = drifting_waves(16, T, seed=step)
        optimiser.zero_grad()
        predicted = model(latents[:, :-1], times[:, :-1], times[:, 1:])
        (predicted - latents[:, 1:]).square().mean().backward()
        optimiser.step()
    latents, times = drifting_waves(64, T, seed=-1)
    with torch.no_grad():
        predicted = model.predict(latents[:, :3], times[:, :3], times[:, 3:])
    error = (predicted - latents[:, 3:]).square().mean(dim=(0, 2, 3, 4))
    copied = (latents[:, 2:3] - latents[:, 3:]).square().mean(dim=(0, 2, 3, 4))
    assert (1 - error / copied).min() > 0.5, (1 - error / copied).tolist()
