"""The objective: what counts, what it costs, what copying would have cost, and whom a bad loss is blamed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flcache.batch import ChannelStatistics, LatentBatch
from flcache.errors import ConfigError, LeakError
from flcache.predictor import PREDICTORS, Forecast, Predictor, PredictorOptions, build_predictor
from flcache.predictor.causal import CausalPredictor
from flcache.training.objective import (
    DISTANCES,
    PredictionLoss,
    legal_training_boundaries,
    prediction_loss,
)
from flcache.training.options import Distance, Objective
from flcache.training.world_model import WorldModel

B, T = 3, 5
SHAPE = (B, T, 2, 3, 4)
EVERY_BOUNDARY = range(1, T)
KINDS = list(PREDICTORS)


def a_batch() -> LatentBatch:
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(B, T, dtype=torch.bool)
    return LatentBatch(latents, latents, torch.arange(5.0).expand(B, T), valid, ("a", "b", "c"), 2)


def an_objective(
    distance: str = "l2", targets: str = "raw", rollout_steps: int = 1, weights: tuple[float, ...] = (1.0,)
) -> Objective:
    return Objective(distance, targets, rollout_steps, weights)


def next_step_loss(prediction: Tensor, batch: LatentBatch, boundaries: Sequence[int], distance: str) -> PredictionLoss:
    """Score `prediction` (B, T - 1, H, W, D) of the steps 1 to T - 1, each made from the steps before it."""
    forced = Forecast(prediction, torch.arange(1, T), torch.ones(T - 1, dtype=torch.long))
    return prediction_loss([forced], batch, boundaries, an_objective(distance))


def predictor(kind: str = "causal", channels: int = SHAPE[-1]) -> Predictor:
    torch.manual_seed(0)
    sizes = {"depth": 2, "width": 24, "heads": 2, "mlp_width": 48, "merge": 1}
    model = build_predictor(PredictorOptions(kind, "tiny", sizes), (*SHAPE[1:-1], channels))
    nn.init.normal_(model.get_submodule("head").get_parameter("weight"), std=0.1)  # a zero head would only copy
    return model


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1", "cosine"])
def test_loss_equals_the_direct_formula_over_what_counts(kind: str) -> None:
    batch = a_batch()
    batch.valid[1, 3:] = False
    prediction = torch.randn(B, T - 1, *SHAPE[2:])
    distances = []
    for clip, step in [(0, 2), (0, 4), (1, 2), (2, 2), (2, 4)]:
        predicted, true = prediction[clip, step - 1].double(), batch.latents[clip, step].double()
        off = (predicted - true).abs()
        smooth = torch.where(off < 1, off.square() / 2, off - 0.5)
        length = batch.latents[clip, step - 1].double().norm(dim=-1).clamp(min=2)  # sqrt(D)
        cosine = off.square().sum(-1) / (2 * length.square())
        distances.append({"l1": off, "l2": off.square(), "smooth_l1": smooth, "cosine": cosine}[kind].mean())
    result = next_step_loss(prediction, batch, [2, 4], kind)
    assert result.loss.item() == pytest.approx(torch.stack(distances).mean().item(), rel=1e-5)
    per_clip = [(distances[0] + distances[1]) / 2, distances[2], (distances[3] + distances[4]) / 2]
    assert result.per_clip.tolist() == pytest.approx([mean.item() for mean in per_clip], rel=1e-5)


def test_copying_costs_exactly_the_copy_last_metric() -> None:
    batch = a_batch()
    result = next_step_loss(batch.latents[:, :-1], batch, [1, 3], "l1")
    assert torch.equal(result.metrics["loss/prediction"], result.metrics["loss/copy_last"])
    assert result.loss > 0
    perfect = next_step_loss(batch.latents[:, 1:], batch, [1, 3], "l1")
    assert perfect.loss == 0
    assert torch.equal(perfect.metrics["loss/copy_last"], result.metrics["loss/copy_last"])


def test_gradient_reaches_the_latents_and_targets_that_have_one() -> None:
    latents, targets = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    for trained in (False, True):
        batch = replace(a_batch(), latents=latents, targets=targets.requires_grad_(trained))
        result = next_step_loss(2 * batch.latents[:, :-1], batch, range(1, T), "l2")
        result.loss.backward()
        assert latents.grad is not None
        assert (latents.grad[:, :-1] != 0).all()
        assert (targets.grad is not None) == trained
        assert not any(metric.requires_grad for metric in (*result.metrics.values(), result.per_clip))
    assert targets.grad is not None and (targets.grad[:, 1:] != 0).all()


def test_batch_without_a_valid_target_costs_nothing() -> None:
    batch = a_batch()
    batch.valid[:, 1:] = False
    prediction = torch.randn(B, T - 1, *SHAPE[2:], requires_grad=True)
    result = next_step_loss(prediction, batch, range(1, T), "l1")
    result.loss.backward()
    assert result.loss == 0
    assert prediction.grad is not None
    assert (prediction.grad == 0).all()
    assert result.per_clip.tolist() == [0, 0, 0]


def test_positions_that_do_not_count_get_no_gradient() -> None:
    prediction = torch.randn(B, T - 1, *SHAPE[2:], requires_grad=True)
    next_step_loss(prediction, a_batch(), [2], "l2").loss.backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().amax(dim=(0, 2, 3, 4)).bool().tolist() == [False, True, False, False]


RELATIVE = [("l1", "layer_norm"), ("l2", "layer_norm"), ("cosine", "raw"), ("cosine", "layer_norm")]


@pytest.mark.parametrize(("distance", "targets"), RELATIVE)
def test_level_and_size_of_tokens_are_learnt_too(distance: str, targets: str) -> None:
    """What a prediction is evaluated and rolled out with must cost something in training."""
    batch, objective = a_batch(), an_objective(distance, targets)

    def loss(prediction: Tensor) -> float:
        forced = Forecast(prediction, torch.arange(1, T), torch.ones(T - 1, dtype=torch.long))
        return prediction_loss([forced], batch, EVERY_BOUNDARY, objective).loss.item()

    perfect = batch.latents[:, 1:]
    assert loss(perfect) == 0
    assert loss(2 * perfect) > 0.1 and loss(perfect + 1) > 0.1


@pytest.mark.parametrize(("distance", "targets"), RELATIVE)
def test_errors_of_large_tokens_count_relative_to_these(distance: str, targets: str) -> None:
    batch, prediction = a_batch(), torch.randn(B, T - 1, *SHAPE[2:])
    pattern = torch.tensor([1.0, -1.0, 1.0, -1.0])  # every token has a deviation above 1, and a length above sqrt(D)
    batch = replace(batch, latents=batch.latents + 8 * pattern, targets=batch.latents + 8 * pattern)
    larger = replace(batch, latents=3 * batch.latents, targets=3 * batch.latents)
    losses = [
        prediction_loss(
            [Forecast(scale * prediction, torch.arange(1, T), torch.ones(T - 1, dtype=torch.long))],
            seen,
            EVERY_BOUNDARY,
            an_objective(distance, targets),
        ).loss.item()
        for scale, seen in ((1, batch), (3, larger))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(("distance", "targets"), RELATIVE)
def test_tokens_that_are_almost_nothing_do_not_outweigh_others(distance: str, targets: str) -> None:
    batch, prediction = a_batch(), torch.randn(B, T - 1, *SHAPE[2:])
    dark = replace(batch, latents=1e-3 * batch.latents, targets=batch.latents)
    loss = prediction_loss(
        [Forecast(prediction, torch.arange(1, T), torch.ones(T - 1, dtype=torch.long))],
        dark,
        EVERY_BOUNDARY,
        an_objective(distance, targets),
    ).loss.item()
    error = prediction - batch.latents[:, 1:]
    direct = error.abs().mean() if distance == "l1" else error.square().mean()
    assert loss == pytest.approx(direct.item() * (0.5 if distance == "cosine" else 1.0), rel=1e-5)


def test_cosine_of_tokens_of_one_length_is_that_of_directions() -> None:
    batch = a_batch()
    latents = 3 * functional.normalize(batch.latents, dim=-1)  # longer than sqrt(D) = 2
    batch = replace(batch, latents=latents, targets=latents)
    turned = batch.latents[:, :-1].flip(-1)
    result = next_step_loss(turned, batch, EVERY_BOUNDARY, "cosine")
    direct = 1 - functional.cosine_similarity(turned, batch.latents[:, 1:], dim=-1).mean()
    assert result.loss.item() == pytest.approx(direct.item(), rel=1e-5)


def test_weights_are_of_the_mean_at_each_horizon() -> None:
    batch, prediction = a_batch(), torch.randn(B, 3, *SHAPE[2:])
    batch.valid[0, 4] = False  # two clips count at horizon 3, three elsewhere
    ahead = Forecast(prediction, torch.arange(2, 5), torch.arange(1, 4))
    distance = (prediction - batch.latents[:, 2:]).square().mean(dim=(2, 3, 4))
    copied = (batch.latents[:, 1:2] - batch.latents[:, 2:]).square().mean(dim=(2, 3, 4))
    result = prediction_loss([ahead], batch, [2], an_objective(weights=(2.0, 0.5)))

    def direct(values: Tensor) -> float:
        return (2 * values[:, 0].mean() + 0.5 * values[:, 1].mean() + 0.5 * values[1:, 2].mean()).item() / 3

    assert result.loss.item() == pytest.approx(direct(distance), rel=1e-5)
    assert result.metrics["loss/copy_last"].item() == pytest.approx(direct(copied), rel=1e-5)
    forced = Forecast(torch.randn(B, T - 1, *SHAPE[2:]), torch.arange(1, T), torch.ones(T - 1, dtype=torch.long))
    only_first = prediction_loss([forced, ahead], batch, [2], an_objective(weights=(1.0, 0.0)))
    both = torch.stack((forced.prediction[:, 1], prediction[:, 0]))
    assert only_first.loss.item() == pytest.approx((both - batch.latents[:, 2]).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boundaries", [[1, 2, 3, 4], [3], [2, 4]])
def test_predictions_are_made_from_the_steps_before_a_legal_boundary(kind: str, boundaries: list[int]) -> None:
    model, batch = predictor(kind), a_batch()
    for seed in range(4):
        for part in _forecasts(model, batch, boundaries, seed):
            origins = part.steps - part.horizons + 1
            teacher_forced = kind == "causal" and bool((part.horizons == 1).all())
            assert teacher_forced or set(origins.tolist()) <= set(boundaries)
            for index, origin in enumerate(origins.tolist()):
                altered = batch.latents.clone()
                altered[:, origin:] = 9.0  # what a prediction must not have seen
                if kind != "flow_matching":  # whose training looks at its noisy targets
                    blind = _forecasts(model, replace(batch, latents=altered, targets=altered), boundaries, seed)
                    same = next(other for other in blind if other.steps.equal(part.steps))
                    assert torch.equal(same.prediction[:, index], part.prediction[:, index])


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_predictors_cost_what_copying_costs(kind: str) -> None:
    model, batch = predictor(kind), a_batch()
    nn.init.zeros_(model.get_submodule("head").get_parameter("weight"))
    result = prediction_loss(model.forecasts(batch, EVERY_BOUNDARY, 3), batch, EVERY_BOUNDARY, an_objective())
    assert torch.equal(result.loss, result.metrics["loss/copy_last"])


def test_a_flow_that_only_removes_noise_is_not_ahead_of_copying() -> None:
    """Copying, joined with the noisy target as well as can be: nothing is known of the future."""
    generator, copy_error = torch.Generator().manual_seed(0), 0.5
    latents = torch.randn(64, 2, 4, 4, 16, generator=generator)
    latents[:, 1] = latents[:, 0] + copy_error**0.5 * latents[:, 1]
    batch = LatentBatch(latents, latents, torch.arange(2.0).expand(64, 2), torch.ones(64, 2).bool(), ("",) * 64, 1)
    model = predictor("flow_matching", channels=16)

    def ends(noisy: Tensor, progress: Tensor, context: Tensor, *_: Tensor) -> Tensor:
        done = progress[:, None, None, None, None]
        share = copy_error * done**2 / (copy_error * done**2 + (1 - done) ** 2)
        return context[:, -1:] + share * (noisy / done - context[:, -1:])

    model.forward = ends  # type: ignore[method-assign]
    torch.manual_seed(0)
    result = prediction_loss(model.forecasts(batch, [1], 1), batch, [1], an_objective())
    assert result.metrics["loss/copy_last_shown"].item() == pytest.approx(result.loss.item(), rel=0.02)
    assert result.loss < 0.75 * result.metrics["loss/copy_last"]


@pytest.mark.parametrize("kind", KINDS)
def test_noise_comes_from_torchs_generator_and_the_boundary_is_the_first(kind: str) -> None:
    model, batch = predictor(kind), a_batch()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = [part.prediction for part in model.forecasts(batch, EVERY_BOUNDARY, 3)]
    torch.set_rng_state(state)
    again = [part.prediction for part in model.forecasts(batch, EVERY_BOUNDARY, 3)]
    assert all(torch.equal(before, after) for before, after in zip(first, again, strict=True))
    taken = {part.steps.tolist()[-1] - len(part.steps) for part in model.forecasts(batch, [3, 1, 2], 2)}
    assert taken == {2} or kind == "causal"


def test_rolled_out_third_step_comes_from_the_predicted_second() -> None:
    """A published rollout loss fed the true or the wrong step (facebookresearch/vjepa2, pull request 25)."""
    model, batch = predictor(), a_batch()
    assert isinstance(model, CausalPredictor)
    rolled = model.forecasts(batch, [1], 3)[1]
    assert (rolled.steps.tolist(), rolled.horizons.tolist()) == ([2, 3], [2, 3])
    latents, times = batch.latents, batch.times
    first = model(latents[:, :1], times[:, :1], times[:, 1:2])
    second = model(torch.cat((latents[:, :1], first), 1), times[:, :2], times[:, 1:3])[:, 1:]
    third = model(torch.cat((latents[:, :1], first, second), 1), times[:, :3], times[:, 1:4])[:, 2:]
    torch.testing.assert_close(rolled.prediction, torch.cat((second, third), 1), atol=1e-5, rtol=0)
    changed = latents.clone()
    changed[:, 1:] = torch.randn(B, T - 1, *SHAPE[2:])
    blind = model.forecasts(replace(batch, latents=changed), [1], 3)[1]
    torch.testing.assert_close(blind.prediction, rolled.prediction, atol=1e-6, rtol=0)


def test_rollout_stops_where_the_clip_ends() -> None:
    model, batch = predictor(), a_batch()
    assert [part.horizons.tolist() for part in model.forecasts(batch, [4], 3)] == [[1, 1, 1, 1], []]
    assert [part.horizons.tolist() for part in model.forecasts(batch, [2, 4], 3)] == [[1, 1, 1, 1], [2, 3]]


@pytest.mark.parametrize(("legal", "rollout_steps"), [([1, 2, 3, 4], 1), ([2, 4], 3), ([3], 2), ([2], 3)])
def test_null_rolls_out_over_all_targets_unless_contexts_may_end_anywhere(legal: list[int], rollout_steps: int) -> None:
    """Of a prefix, teacher forcing trains the one step after it."""
    assert Objective().steps_rolled_out(legal, T) == rollout_steps
    assert an_objective(rollout_steps=1).steps_rolled_out(legal, T) == 1
    statistics = ChannelStatistics(torch.zeros(4), torch.ones(4))
    parts: list[Forecast] = []
    model = WorldModel(predictor(), statistics, boundaries=legal, objective=Objective())
    made = model.predictor.forecasts
    model.predictor.forecasts = lambda *given: parts.extend(made(*given)) or parts  # type: ignore[method-assign,func-returns-value]
    model(a_batch())
    trained = {
        (step, ahead)
        for part in parts
        for step, ahead in zip(part.steps.tolist(), part.horizons.tolist(), strict=True)
        if step - ahead + 1 in legal
    }
    middle = min(legal, key=lambda boundary: abs(boundary - T // 2))
    if len(legal) < T - 1:
        assert {(middle + ahead - 1, ahead) for ahead in range(1, T - middle + 1)} <= trained
    else:
        assert trained == {(step, 1) for step in range(1, T)}


def test_rollout_gradient_reaches_the_first_prediction() -> None:
    model, batch = predictor(), a_batch()
    latents = batch.latents.clone().requires_grad_()
    model.forecasts(replace(batch, latents=latents), [2], 3)[1].prediction[:, -1].sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().amax(dim=(0, 2, 3, 4)).bool().tolist() == [True, True, False, False, False]


def _forecasts(model: Predictor, batch: LatentBatch, boundaries: Sequence[int], seed: int) -> list[Forecast]:
    torch.manual_seed(seed)
    return model.forecasts(batch, boundaries, 3)


def test_legal_training_boundaries_follow_the_leak_rule() -> None:
    assert legal_training_boundaries([0, 1, 2, 3], allow_leak=False) == [1, 2, 3]
    assert legal_training_boundaries([1, 1, 3, 3], allow_leak=False) == [2]
    assert legal_training_boundaries([3, 3, 3, 3], allow_leak=True) == [1, 2, 3]
    with pytest.raises(LeakError, match=r"encode\.context=step"):
        legal_training_boundaries([3, 3, 3, 3], allow_leak=False)


def test_every_distance_that_can_be_asked_for_is_there() -> None:
    assert tuple(DISTANCES) == get_args(Distance)


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'training.loss: unknown "mse"; choose from l1, l2, smooth_l1, cosine'):
        an_objective("mse")
    with pytest.raises(ConfigError, match=r'training.targets: unknown "normed"; choose from raw, layer_norm'):
        an_objective(targets="normed")
    for weights in ((), (-1.0, 2.0), (0.0,)):
        with pytest.raises(ConfigError, match=r"training\.horizon_weights"):
            an_objective(weights=weights)
    with pytest.raises(ConfigError, match=r"flow_matching learns velocities.*set training\.loss=l2"):
        predictor("flow_matching").check_objective("l1", "raw")
    predictor("flow_matching").check_objective("l2", "raw")
