"""A saved predictor predicts the same bits in another process, takes raw latents, and is whole or refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run_forked
from torch import Tensor, nn

from flcache.batch import ChannelStatistics
from flcache.errors import PredictorError
from flcache.predictor import (
    PREDICTORS,
    Predictor,
    PredictorCard,
    PredictorOptions,
    SavedPredictor,
    build_predictor,
    load_predictor,
    register_predictor,
    save_predictor,
)
from flcache.sealed import read_json, sealed

T, H, W, D = SHAPE = (6, 2, 4, 8)
TIMES = tuple(0.125 + 0.25 * step for step in range(T))
OVERRIDES = {"depth": 2, "width": 32, "heads": 2, "mlp_width": 64, "merge": 2}


def card_of(kind: str, **changes: Any) -> PredictorCard:
    fields: dict[str, Any] = {
        "options": PredictorOptions(kind, preset="tiny", overrides=OVERRIDES, attention="factorised"),
        "latent_shape": SHAPE,
        "times": TIMES,
        "seen_until": tuple(range(T)),
        "context_steps": 3,
        "leak": False,
        "fingerprint": "f00d",
        "latents": {"codec": "float32", "layout": {"shape": list(SHAPE), "tubelet_size": 2}},
        "target_weights": None,
        "precision": "no",
        "step": 7,
    }
    return PredictorCard(**{**fields, **changes})


def saved(folder: Path, kind: str = "causal", **changes: Any) -> Path:
    """A predictor with random weights, its zero head included, in `folder`."""
    card, generator = card_of(kind, **changes), torch.Generator().manual_seed(1)
    predictor = build_predictor(card.options, SHAPE)
    for parameter in predictor.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    statistics = ChannelStatistics(torch.linspace(-2, 2, D), torch.linspace(0.5, 3, D))
    save_predictor(folder, predictor, statistics, card)
    return folder


def context(steps: int = 3) -> Tensor:
    return 3 * torch.randn(2, steps, H, W, D, generator=torch.Generator().manual_seed(0)) + 1


def predict_into(folder: Path, out: Path) -> None:
    torch.save(predictions(load_predictor(folder)), out)


def predictions(predictor: SavedPredictor) -> list[Tensor]:
    """By the times of training, and by others; from seeds, which a predictor that is not generative ignores."""
    given = torch.tensor([[0.0, 0.4, 0.5]] * 2), torch.tensor([[0.7, 1.0]] * 2)
    return [predictor(context(), seeds=[3, 4]), predictor(context(), *given, seeds=[3, 4])]


@pytest.mark.parametrize("kind", ["causal", "parallel", "cross_attention", "flow_matching"])
def test_another_process_predicts_the_same_bits(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "predictor", kind)
    done = run_forked(predict_into, folder, tmp_path / "there.pt")
    assert done.returncode == 0, done.stderr
    here, there = predictions(load_predictor(folder)), torch.load(tmp_path / "there.pt", weights_only=True)
    assert [tuple(each.shape) for each in here] == [(2, 3, H, W, D), (2, 2, H, W, D)]
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))
    assert not torch.allclose(here[0], context()[:, -1:].expand_as(here[0])), "it is no untrained copy"


def test_raw_latents_go_in_and_out_and_what_was_saved_comes_back(tmp_path: Path) -> None:
    again = load_predictor(saved(tmp_path / "predictor"))
    assert again.card == card_of("causal")
    times = torch.tensor(TIMES).expand(2, -1)
    standardised = again.statistics.standardise(context())
    expected = again.predictor.predict(standardised, times[:, :3], times[:, 3:])
    assert torch.equal(again(context()), again.statistics.restore(expected))


def test_gradients_reach_the_input_alone(tmp_path: Path) -> None:
    predictor, given = load_predictor(saved(tmp_path / "predictor")), context().requires_grad_()
    predictor(given).sum().backward()
    assert given.grad is not None and given.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in predictor.predictor.parameters())
    assert not predictor(context()).requires_grad


def test_loading_draws_nothing(tmp_path: Path) -> None:
    folder = saved(tmp_path / "predictor")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_predictor(folder)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((context(6),), "a context of 6 steps"),
        ((context()[..., :4],), r"\(B, Tc, 2, 4, 8\)"),
        ((context()[0],), r"not \(3, 2, 4, 8\)"),
        ((context(), torch.zeros(2, 3)), "give both or none"),
        ((context(), torch.zeros(2, 3), torch.ones(2, 4)), "ask for 1 to 3"),
    ],
)
def test_what_it_was_not_trained_for_is_refused(given: tuple[Tensor, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match=words) as refused:
        load_predictor(saved(tmp_path / "predictor"))(*given)
    assert "\n" not in str(refused.value)


def test_a_context_that_has_seen_the_future_is_refused(tmp_path: Path) -> None:
    windows = (1, 1, 3, 3, 5, 5)
    predictor = load_predictor(saved(tmp_path / "windows", seen_until=windows))
    assert predictor.card.context_limits == [2, 4]
    assert predictor(context(2)).shape[1] == 4
    with pytest.raises(PredictorError, match=r"takes \[2, 4\] of its 6 steps"):
        predictor(context(3))
    leaking = load_predictor(saved(tmp_path / "leak", seen_until=(5,) * T, leak=True))
    assert leaking(context(3)).shape[1] == 3 and leaking.card.leak


def test_without_times_of_its_own_it_asks_for_them(tmp_path: Path) -> None:
    predictor = load_predictor(saved(tmp_path / "predictor", times=None))
    with pytest.raises(PredictorError, match="give those of context and targets"):
        predictor(context())
    assert predictor(context(), torch.zeros(2, 3), torch.ones(2, 1)).shape[1] == 1


class Touch:
    """Unpickled, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def refused(folder: Path) -> str:
    with pytest.raises(PredictorError) as error:
        load_predictor(folder)
    text = str(error.value)
    assert "\n" not in text and str(folder) in text and 'write it anew with "flcache export"' in text
    return text


def test_a_folder_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match=f"^{tmp_path / 'gone'}: there is no such folder"):
        load_predictor(tmp_path / "gone")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" x"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "JSON of something else": lambda path: path.write_text('{"model_type": "vit"}'),
    "a list": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("file", ["predictor.json", "predictor.safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(file: str, damage: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "predictor")
    DAMAGE[damage](folder / file)
    assert file in refused(folder)


@pytest.mark.parametrize("file", ["predictor.json", "predictor.safetensors"])
def test_any_other_byte_is_noticed(file: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "predictor")
    whole = (folder / file).read_bytes()
    spaces = {place for place, byte in enumerate(whole) if chr(byte).isspace() and file.endswith("json")}
    places = [place for place in range(0, len(whole), len(whole) // 60) if place not in spaces]
    for place in places:
        (folder / file).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(folder)
    assert len(places) > 40


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    folder, made = saved(tmp_path / "predictor"), tmp_path / "made"
    for file in ("predictor.json", "predictor.safetensors"):
        (folder / file).write_bytes(pickle.dumps(Touch(made)))
        refused(folder)
    assert not made.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "flp9"},
        {"options": {**asdict(PredictorOptions("causal")), "preset": "tiny"}},
        {"options": {**asdict(PredictorOptions("causal")), "more": 1}},
        {"options": {}},
        {"latent_shape": [6, 2, 4]},
        {"latent_shape": [6, 2, 4, 16]},
        {"seen_until": [0]},
        {"times": [0.5]},
        {"times": ["soon"] * T},
        {"more": 1},
    ],
    ids=str,
)
def test_a_record_that_does_not_fit_its_weights_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    """Sealed anew, as by someone who changes it on purpose."""
    folder = saved(tmp_path / "predictor")
    content = read_json(folder / "predictor.json")
    del content["xxh3_64"]
    (folder / "predictor.json").write_text(sealed({**content, **change}), encoding="utf-8")
    refused(folder)


def test_a_kind_of_ones_own_is_loaded_once_it_is_registered(tmp_path: Path) -> None:
    @register_predictor
    class Still(Predictor):
        kind = "still"

        def __init__(self, options: PredictorOptions, latent_shape: tuple[int, int, int, int]) -> None:
            super().__init__(options, latent_shape)
            self.gain = nn.Parameter(torch.ones(()))

        def predict(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
            return self.gain * context[:, -1:].expand(-1, target_times.shape[1], -1, -1, -1)

    options = replace(card_of("causal").options, kind="still")
    folder = saved(tmp_path / "predictor", options=options)
    assert load_predictor(folder)(context()).shape == (2, 3, H, W, D)
    del PREDICTORS["still"]
    with pytest.raises(PredictorError, match='kind "still" is registered; import the module that registers it'):
        load_predictor(folder)
