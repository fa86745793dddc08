"""Every kind of predictor: one interface, free lengths, a start as a copy, and what each may see."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from flcache.errors import ConfigError
from flcache.predictor import PREDICTORS, Predictor, PredictorOptions, build_predictor, predictor_class
from flcache.predictor import attention as kernels

H, W, D = 4, 6, 8
SMALL = {"depth": 4, "width": 48, "heads": 2, "mlp_width": 96, "merge": 1}
KINDS = list(PREDICTORS)
PLAIN = PredictorOptions()


def predictor(options: PredictorOptions, *, merge: int = 1, depth: int = 4, untrained: bool = False) -> Predictor:
    torch.manual_seed(0)
    sizes = {**SMALL, "merge": merge, "depth": depth}
    model = build_predictor(replace(options, preset="tiny", overrides=sizes), (6, H, W, D))
    if not untrained:
        nn.init.normal_(model.get_submodule("head").get_parameter("weight"), std=0.1)
    return model


def clips(context: int, targets: int, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Context latents, and times of context and targets at unequal spacing."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(count, context, H, W, D, generator=generator)
    times = torch.rand(count, context + targets, generator=generator).add(0.1).cumsum(1)
    return latents, times[:, :context], times[:, context:]


def predict(model: Predictor, latents: Tensor, times: Tensor, later: Tensor) -> Tensor:
    """With the noise of a flow fixed."""
    torch.manual_seed(2)
    return model.predict(latents, times, later)


@pytest.fixture(params=[(kind, attention) for kind in KINDS for attention in ("joint", "factorised")], ids="-".join)
def options(request: pytest.FixtureRequest) -> PredictorOptions:
    kind, attention = request.param
    return PredictorOptions(kind=kind, attention=attention)


@pytest.mark.parametrize("merge", [1, 2])
def test_untrained_predictor_copies_the_last_step_bit_by_bit(options: PredictorOptions, merge: int) -> None:
    latents, times, later = clips(3, 4)
    predicted = predict(predictor(options, merge=merge, untrained=True), latents, times, later)
    assert torch.equal(predicted, latents[:, -1:].expand(-1, 4, -1, -1, -1))


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_untrained_flow_copies_however_it_is_sampled(sampler: str, guidance: float) -> None:
    flow = replace(PLAIN.flow, sampler=sampler, guidance=guidance, sampler_steps=3)  # type: ignore[arg-type]
    latents, times, later = clips(3, 4)
    model = predictor(PredictorOptions(kind="flow_matching", flow=flow), untrained=True)
    assert torch.equal(predict(model, latents, times, later), latents[:, -1:].expand(-1, 4, -1, -1, -1))


@pytest.mark.parametrize(("context", "targets"), [(1, 1), (1, 5), (7, 1), (9, 12)])
def test_lengths_of_context_and_target_are_free(options: PredictorOptions, context: int, targets: int) -> None:
    latents, times, later = clips(context, targets)
    predicted = predict(predictor(options), latents, times, later)
    assert predicted.shape == (2, targets, H, W, D)
    assert predicted.isfinite().all()


def test_every_step_and_place_of_the_context_matters(options: PredictorOptions) -> None:
    latents, times, later = clips(4, 2)
    latents.requires_grad_()
    predict(predictor(options), latents, times, later)[:, -1].square().sum().backward()
    assert latents.grad is not None
    assert (latents.grad.abs().amax(dim=-1) > 0).all()


def test_one_place_of_the_prediction_depends_on_all_places(options: PredictorOptions) -> None:
    latents, times, later = clips(4, 1)
    latents.requires_grad_()
    predict(predictor(options), latents, times, later)[:, :, 0, 0].square().sum().backward()
    assert latents.grad is not None
    assert (latents.grad.abs().amax(dim=-1) > 0).all()


def test_predictions_do_not_depend_on_when_the_clip_starts(options: PredictorOptions) -> None:
    latents, times, later = clips(4, 3)
    model = predictor(options)
    usual, shifted = predict(model, latents, times, later), predict(model, latents, times + 1024, later + 1024)
    torch.testing.assert_close(shifted, usual, atol=2e-2, rtol=0)


def test_how_far_ahead_is_asked_matters(options: PredictorOptions) -> None:
    latents, times, later = clips(4, 3)
    model = predictor(options)
    assert not torch.allclose(predict(model, latents, times, later + 0.3), predict(model, latents, times, later))


def test_clips_of_a_batch_do_not_meet(options: PredictorOptions) -> None:
    latents, times, later = clips(4, 3)
    model, altered = predictor(options), latents.clone()
    altered[0] = 7.0
    before, after = predict(model, latents, times, later)[1], predict(model, altered, times, later)[1]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_cross_attention_targets_do_not_see_each_other() -> None:
    latents, times, later = clips(4, 5)
    for attention in ("joint", "factorised"):
        model = predictor(PredictorOptions(kind="cross_attention", attention=attention))  # type: ignore[arg-type]
        together, alone = model.predict(latents, times, later), model.predict(latents, times, later[:, 2:3])
        torch.testing.assert_close(alone, together[:, 2:3], atol=1e-5, rtol=0)


def test_factorised_causal_rollout_equals_computing_everything_anew() -> None:
    model = predictor(PredictorOptions(attention="factorised"))
    latents, times, later = clips(3, 4)
    steps, all_times = latents, torch.cat((times, later), dim=1)
    for known in range(3, 7):
        predicted = model(steps, all_times[:, :known], all_times[:, 1 : known + 1])[:, -1:]
        steps = torch.cat((steps, predicted), dim=1)
    torch.testing.assert_close(model.predict(latents, times, later), steps[:, 3:], atol=1e-5, rtol=0)


def test_factorised_causal_predictions_do_not_see_later_steps() -> None:
    model = predictor(PredictorOptions(attention="factorised"))
    latents, times, _ = clips(6, 1)
    altered = latents.clone()
    altered[:, 3:] = 9.0
    before, after = (model(steps, times, times + 0.5) for steps in (latents, altered))
    torch.testing.assert_close(after[:, :3], before[:, :3], atol=1e-6, rtol=0)
    assert not torch.isclose(after[:, 3], before[:, 3]).all()


def test_checkpointed_activations_change_neither_prediction_nor_gradient(options: PredictorOptions) -> None:
    results = []
    for checkpointed in (False, True):
        model = predictor(replace(options, checkpoint_activations=checkpointed))
        predicted = predict(model, *clips(4, 3))
        predicted.square().mean().backward()
        results.append((predicted, [parameter.grad for parameter in model.parameters()]))
    (plain, plain_gradients), (recomputed, gradients) = results
    assert torch.equal(plain, recomputed)
    torch.testing.assert_close(plain_gradients, gradients, atol=1e-6, rtol=1e-4)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


@needs_compiler
@pytest.mark.filterwarnings("ignore")  # torch warns a lot while it compiles
@pytest.mark.parametrize(
    "options",
    [
        ("causal", "joint"),
        ("causal", "factorised"),
        ("parallel", "factorised"),  # its blocks are those of flow_matching
        ("flow_matching", "joint"),
        ("cross_attention", "joint"),
        ("cross_attention", "factorised"),
    ],
    ids="-".join,
    indirect=True,
)
def test_compiled_blocks_predict_the_same_under_the_same_names(options: PredictorOptions) -> None:
    options = replace(options, flow=replace(PLAIN.flow, sampler_steps=1))
    depth = 2 if options.attention == "factorised" or options.kind == "cross_attention" else 1
    assert_compiled_equals_plain(options, depth)


@needs_compiler
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_keep_flex_attention_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: compiled together with a block, FlexAttention was off by 1.3 here."""
    monkeypatch.setattr(kernels, "_has_flex_attention", lambda queries: queries.shape[3] >= kernels.FLEX_HEAD_DIM)
    assert_compiled_equals_plain(PLAIN, depth=1)


def assert_compiled_equals_plain(options: PredictorOptions, depth: int) -> None:
    plain, compiled = (predictor(replace(options, compile=switch), depth=depth) for switch in (False, True))
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    batch = clips(3, 1)
    with torch.no_grad():
        torch.testing.assert_close(predict(compiled, *batch), predict(plain, *batch), atol=1e-5, rtol=0)


def test_samples_of_a_flow_differ_and_follow_torchs_generator() -> None:
    model = predictor(PredictorOptions(kind="flow_matching"))
    batch = clips(3, 2)
    first, again = predict(model, *batch), predict(model, *batch)
    assert torch.equal(first, again)
    assert not torch.allclose(model.predict(*batch), first)


def test_guidance_leads_away_from_what_the_last_step_alone_tells() -> None:
    def sampled(guidance: float) -> Tensor:
        flow = replace(PLAIN.flow, guidance=guidance, sampler_steps=1)  # one step: the guided end itself
        return predict(predictor(PredictorOptions(kind="flow_matching", flow=flow)), *clips(3, 2))

    plain, guided, more = sampled(1.0), sampled(2.0), sampled(3.0)
    assert not torch.allclose(plain, guided)
    torch.testing.assert_close(more - guided, guided - plain, atol=1e-5, rtol=0)
    last_alone = 2 * plain - guided
    flow = replace(PLAIN.flow, sampler_steps=1)
    model = predictor(PredictorOptions(kind="flow_matching", flow=flow))
    latents, times, later = clips(3, 2)
    latents[:, :-1] = 5.0
    torch.testing.assert_close(2 * predict(model, latents, times, later) - sampled_from(model, latents), last_alone)


def sampled_from(model: Predictor, latents: Tensor) -> Tensor:
    """The same model guided by 2, on `latents`."""
    flow = replace(PLAIN.flow, guidance=2.0, sampler_steps=1)
    guided = predictor(PredictorOptions(kind="flow_matching", flow=flow))
    guided.load_state_dict(model.state_dict())
    _, times, later = clips(3, 2)
    return predict(guided, latents, times, later)


def test_every_class_is_registered_under_its_own_kind() -> None:
    assert [predictor_class(kind).kind for kind in KINDS] == KINDS


def test_options_and_registry_load_without_torch() -> None:
    code = "import sys, flcache.predictor.options, flcache.predictor.registry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_kinds_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r'predictor.kind: unknown "paralel"; did you mean "parallel"\?'):
        predictor(PredictorOptions(kind="paralel"))
