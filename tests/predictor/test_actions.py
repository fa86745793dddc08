"""A causal predictor conditioned on actions: each step's leads to the next step, and saved predictors take them raw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_causal import SMALL, D, H, T, W, clips, later
from test_saved import card_of
from torch import Tensor, nn

from flcache.batch import ChannelStatistics, LatentBatch
from flcache.errors import ConfigError, PredictorError
from flcache.predictor import PredictorOptions, build_predictor, load_predictor, save_predictor
from flcache.predictor.causal import CausalPredictor

A = 3
OPTIONS = PredictorOptions("causal", "tiny", {**SMALL, "merge": 1}, actions=True)


def predictor(*, untrained: bool = False) -> CausalPredictor:
    torch.manual_seed(0)
    model = build_predictor(OPTIONS, (T, H, W, D), A)
    assert isinstance(model, CausalPredictor)
    if not untrained:
        nn.init.normal_(model.head.weight, std=0.1)  # a zero head would hide all that comes before it
    return model


def actions(steps: int = T) -> Tensor:
    return 5 + 2 * torch.randn(2, steps, A, generator=torch.Generator().manual_seed(2))


def batch() -> LatentBatch:
    latents, times = clips()
    return LatentBatch(latents, latents, times, times > 0, ("a", "b"), 3, {"actions": actions()})


def test_untrained_it_copies_the_last_step_exactly() -> None:
    latents, times = clips()
    model = predictor(untrained=True)
    assert torch.equal(model(latents, times, later(times), actions()), latents)
    predicted = model.predict(latents[:, :3], times[:, :3], times[:, 3:], actions())
    assert torch.equal(predicted, latents[:, 2:3].expand(-1, 3, -1, -1, -1))


def test_its_other_weights_are_those_without_actions() -> None:
    torch.manual_seed(0)
    plain = build_predictor(PredictorOptions("causal", "tiny", {**SMALL, "merge": 1}), (T, H, W, D)).state_dict()
    conditioned = predictor(untrained=True).state_dict()
    assert all(torch.equal(weight, conditioned[name]) for name, weight in plain.items())
    assert {name.partition(".")[0] for name in conditioned.keys() - plain.keys()} == {"acts"}


@pytest.mark.parametrize("changed", range(T - 1))
def test_an_action_changes_the_next_step_and_what_follows(changed: int) -> None:
    latents, times = clips()
    model, altered = predictor(), actions()
    altered[:, changed] += 1
    before, after = (model(latents, times, later(times), each) for each in (actions(), altered))
    assert torch.equal(before[:, :changed], after[:, :changed])  # step t + 1 is prediction t
    assert not torch.isclose(before[:, changed], after[:, changed]).all()
    rolled = [model.predict(latents[:, :2], times[:, :2], times[:, 2:], each) for each in (actions(), altered)]
    untouched = max(0, changed - 1)  # prediction 0 is step 2, which the action of step 1 leads to
    assert torch.equal(rolled[0][:, :untouched], rolled[1][:, :untouched])
    assert not torch.isclose(rolled[0][:, untouched], rolled[1][:, untouched]).all()


def test_the_last_action_leads_beyond() -> None:
    latents, times = clips()
    altered = actions()
    altered[:, -1] = 99
    given = latents[:, :2], times[:, :2], times[:, 2:]
    assert torch.equal(predictor().predict(*given, actions()), predictor().predict(*given, altered))
    assert torch.equal(predictor().predict(*given, actions()), predictor().predict(*given, actions()[:, :-1]))


def test_a_rollout_with_kept_keys_is_one_that_starts_anew_at_each_step() -> None:
    latents, times = clips()
    model, known = predictor(), latents[:, :2]
    rolled = model.predict(known, times[:, :2], times[:, 2:], actions())
    for step in range(2, T):
        known = torch.cat(
            (known, model(known, times[:, :step], times[:, 1 : step + 1], actions()[:, :step])[:, -1:]), 1
        )
    torch.testing.assert_close(rolled, known[:, 2:])


def test_a_rollout_to_train_on_is_the_prediction() -> None:
    given, model = batch(), predictor()
    forced, rolled = model.force_and_roll_out(given.latents, given.times, 2, 3, given.arrays["actions"])
    predicted = model.predict(given.latents[:, :2], given.times[:, :2], given.times[:, 2:5], given.arrays["actions"])
    torch.testing.assert_close(rolled, predicted)
    expected = model(given.latents[:, :-1], given.times[:, :-1], given.times[:, 1:], given.arrays["actions"][:, :-1])
    torch.testing.assert_close(forced, expected)
    for rollout_steps in (1, 3):
        first, *_ = model.forecasts(given, [2], rollout_steps)
        torch.testing.assert_close(first.prediction, expected)


def test_actions_are_standardised_inside() -> None:
    latents, times = clips()
    raw, plain = predictor(), predictor()
    raw.standardise_actions(ChannelStatistics(torch.full((A,), 5.0), torch.full((A,), 2.0)))
    found = raw(latents, times, later(times), actions())
    torch.testing.assert_close(found, plain(latents, times, later(times), (actions() - 5) / 2))
    raw(latents, times, later(times), actions()).sum().backward()
    assert raw.acts is not None and raw.acts.hidden.weight.grad is not None


@pytest.mark.parametrize("kind", ["parallel", "cross_attention", "flow_matching"])
def test_other_kinds_refuse_actions(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"predictor.actions: {kind} takes no actions; set predictor.kind=causal"):
        build_predictor(PredictorOptions(kind, "tiny", actions=True), (T, H, W, D), A)


def test_latents_without_actions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"come without actions; keep them with dataset.arrays=\[actions\]"):
        build_predictor(OPTIONS, (T, H, W, D))


def test_a_saved_one_takes_raw_actions_and_no_others(tmp_path: Path) -> None:
    layout = {"shape": [T, H, W, D], "tubelet_size": 1, "arrays": {"actions": [T, A]}}
    times, card = tuple(0.5 * step for step in range(T)), {"latent_shape": (T, H, W, D), "latents": {"layout": layout}}
    model, statistics = predictor(), ChannelStatistics(torch.linspace(-2, 2, D), torch.linspace(0.5, 3, D))
    model.standardise_actions(ChannelStatistics(torch.full((A,), 5.0), torch.full((A,), 2.0)))
    save_predictor(tmp_path / "saved", model, statistics, card_of("causal", options=OPTIONS, times=times, **card))
    loaded, context = load_predictor(tmp_path / "saved"), clips()[0][:, :3]
    seconds = torch.tensor([times, times])
    expected = model.predict(statistics.standardise(context), seconds[:, :3], seconds[:, 3:], actions())
    assert torch.equal(loaded(context, actions=actions()), statistics.restore(expected))
    assert loaded.card.num_actions == A
    for wrong in (None, actions()[:, :4], actions()[..., :2], actions()[:1]):
        with pytest.raises(PredictorError, match=rf"this predictor takes actions of \(2, {T}, {A}\)"):
            loaded(context, actions=wrong)
    save_predictor(
        tmp_path / "plain", build_predictor(card_of("causal").options, (6, 2, 4, 8)), statistics, card_of("causal")
    )
    with pytest.raises(PredictorError, match="takes no actions"):
        load_predictor(tmp_path / "plain")(torch.zeros(2, 3, 2, 4, 8), actions=actions())
