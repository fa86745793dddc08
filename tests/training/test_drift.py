"""Latents of an encoder that trains drift: a space that shrinks makes no figure better, and statistics follow it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from flcache.batch import ChannelStatistics, VideoBatch
from flcache.encoder import ContextRule, EncoderSource, LatentVideoModel, load_encoder
from flcache.predictor import PredictorOptions, build_predictor
from flcache.training import Objective, WorldModel
from flcache.training.options import Distance, EncoderTargets
from flcache.training.statistics import as_statistics, batch_moments

sys.path.insert(0, str(Path(__file__).parent))
from train_families import ARCHITECTURES, FRAMES, Clips

STEPS = FRAMES // 2


def world_model(trainable: bool = True, objective: Objective | None = None, target: str = "ema") -> WorldModel:
    """With statistics of its first latents, and a predictor that does not copy."""
    torch.manual_seed(0)
    source = EncoderSource(architecture={"model_type": "vjepa2", **ARCHITECTURES["vjepa2"]})
    encoder = load_encoder(source, context=ContextRule("step"), trainable=trainable)
    sizes = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 24, "merge": 1}
    predictor = build_predictor(PredictorOptions("causal", "tiny", sizes), encoder.latent_shape(FRAMES))
    nn.init.normal_(predictor.get_submodule("head").get_parameter("weight"), std=0.1)
    batch = a_batch()
    with torch.no_grad():
        statistics = as_statistics(*batch_moments(encoder(batch.frames), batch.valid)[:2])
    given = {"encoder": encoder, "encoder_targets": EncoderTargets(encoder=target)}
    return WorldModel(predictor, statistics, boundaries=[1], objective=objective or Objective("l2"), **given)


def a_batch() -> VideoBatch:
    return next(iter(Clips(STEPS, 0, 1)))


def scale(model: WorldModel, factor: float) -> None:
    """From now on, all that its encoders give is `factor` times as large."""

    def scaled(module: nn.Module, given: tuple[object, ...], latents: Tensor) -> Tensor:
        return factor * latents

    for encoder in (model.encoder, model.target_encoder):
        if encoder is not None:
            encoder.register_forward_hook(scaled)


def figures(model: WorldModel) -> dict[str, float]:
    result = model(a_batch())
    return {name: value.item() for name, value in {"loss": result.loss, **result.metrics}.items()}


@pytest.mark.parametrize("targets", ["raw", "layer_norm"])
@pytest.mark.parametrize("distance", get_args(Distance))
@pytest.mark.parametrize("target", ["ema", "online"])
def test_scaling_an_encoder_on_purpose_moves_no_figure(target: str, distance: str, targets: str) -> None:
    model = world_model(objective=Objective(distance, targets), target=target).train()
    before = figures(model)
    assert before["loss"] != before["loss/copy_last"] > 0
    scale(model, 0.1)
    assert figures(model) == pytest.approx(before, rel=1e-4)


def test_scaling_pays_nothing_to_an_encoder_that_is_its_own_target() -> None:
    """The gradient with respect to the scale of its latents is zero; without the statistics' share it would not be."""
    model = world_model(target="online").train()
    factor = torch.ones((), requires_grad=True)
    assert model.encoder is not None
    model.encoder.register_forward_hook(lambda module, given, latents: factor * latents)
    model(a_batch()).loss.backward()
    assert factor.grad is not None and abs(factor.grad) < 1e-5


def test_the_statistics_of_evaluation_follow() -> None:
    model, batch = world_model(), a_batch()
    before = model.eval().to_latents(batch)
    first = model.to_first_latents(batch)
    scale(model, 0.1)
    moved = model.to_latents(batch)
    assert not torch.allclose(moved.targets, before.targets, atol=0.1)
    with torch.no_grad():
        for _ in range(300):
            model.train().forward(batch)
    followed = model.eval().to_latents(batch)
    torch.testing.assert_close(followed.latents, before.latents, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(followed.targets, before.targets, rtol=1e-3, atol=1e-3)
    expected = 0.1 * first + (0.1 - 1) * model.first_mean / model.first_std
    torch.testing.assert_close(model.to_first_latents(batch), expected, rtol=1e-3, atol=1e-3)


def test_targets_have_a_gradient_only_where_they_come_from_the_encoder_itself() -> None:
    for target in ("ema", "online"):
        latents = world_model(target=target).train().to_latents(a_batch())
        assert latents.latents.requires_grad and latents.targets.requires_grad == (target == "online")
        assert latents.targets is not latents.latents, "which tells evaluation that the encoder trains"


def test_a_frozen_encoder_keeps_the_statistics_it_was_given() -> None:
    model = world_model(trainable=False)
    kept = model.mean.clone(), model.std.clone()
    model.train().forward(a_batch())
    latents = model.to_latents(a_batch())
    assert torch.equal(model.mean, kept[0]) and torch.equal(model.std, kept[1])
    expected = ChannelStatistics(*kept).standardise(frozen(model)(a_batch().frames))
    assert torch.equal(latents.latents, expected) and latents.targets is latents.latents
    assert not any("first" in name for name in model.state_dict())


def frozen(model: WorldModel) -> LatentVideoModel:
    return model._frozen[0]


def test_moments_are_of_valid_steps_and_constant_channels_stay_small() -> None:
    latents = torch.randn(3, 4, 2, 2, 5, generator=torch.Generator().manual_seed(0)) * 3 + 7
    latents[..., 4] = 2.0
    valid = torch.ones(3, 4, dtype=torch.bool)
    valid[1, 2:] = False
    latents[1, 2:] = 1e4
    mean, variance, tokens = batch_moments(latents, valid)
    kept = latents[valid].flatten(0, -2).double()
    assert tokens == len(kept) == 40
    torch.testing.assert_close(mean.double(), kept.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance.double(), kept.var(0, correction=0), rtol=1e-4, atol=1e-5)
    standardised = as_statistics(mean, variance).standardise(latents[valid])
    assert standardised[..., 4].abs().max() < 1e-3 and standardised[..., 0].std() == pytest.approx(1, rel=0.05)
    nothing = batch_moments(latents, torch.zeros_like(valid))
    assert [moment.abs().sum() for moment in nothing] == [0, 0, 0]
