"""Whatever field of a config or a processor is changed: the output keeps every bit, or the spec notices."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flcache.encoder import ContextRule, EncoderSource, LatentVideoModel, first_form, hard_keys, identity, load_encoder
from flcache.encoder.families import FAMILIES
from flcache.encoder.processing import processor_fields
from flcache.encoder.torchvision_ops import import_transformers

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
IMAGE = {**SMALL, "image_size": 16, "patch_size": 8}
VIT = {**IMAGE, "intermediate_size": 32}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vjepa2": {
        **SMALL,
        "crop_size": 16,
        "patch_size": 8,
        "frames_per_clip": 4,
        "pred_hidden_size": 12,
        "pred_num_attention_heads": 1,
        "pred_num_hidden_layers": 1,
    },
    "videomae": {**VIT, "num_frames": 4},
    "vivit": {**SMALL, "intermediate_size": 32, "image_size": 16, "tubelet_size": [2, 8, 8], "num_frames": 4},
    "timesformer": {**VIT, "num_frames": 4},
    "dinov2": IMAGE,
    "dinov2_with_registers": {**IMAGE, "num_register_tokens": 3},
    "dinov3_vit": VIT,
    "vit": VIT,
    "ijepa": VIT,
    "siglip_vision_model": VIT,
    "clip_vision_model": VIT,
}
SIZES = [{"height": 24, "width": 24}, {"shortest_edge": 24}]
OTHER_VALUES: dict[str, list[Any]] = {
    "hidden_act": ["relu", "gelu_new"],
    "resample": [0, 2, 3],
    "size": SIZES,
    "crop_size": SIZES,
    "pooler_act": ["relu"],
    "attention_type": ["joint_space_time", "space_only"],
    "attn_implementation": ["eager"],
    "dtype": ["bfloat16"],
    "data_format": ["channels_last"],
    "input_data_format": ["channels_last"],
    "device": ["cpu"],
    "return_tensors": ["np"],
}
"""Of fields whose values are chosen from a few."""


@dataclass
class Outcome:
    """What became of the perturbed fields, as `field=value`."""

    moved: list[str] = field(default_factory=list)
    """The output moved, with the same weights."""
    unnoticed: list[str] = field(default_factory=list)
    """The output moved, and the fields of the spec did not."""
    failed: list[str] = field(default_factory=list)
    """Could not be built or run."""
    tried: set[str] = field(default_factory=set)
    ran: set[str] = field(default_factory=set)

    def report(self, record_property: Callable[[str, object], None]) -> None:
        never = sorted(self.tried - self.ran)
        record_property("could not be built or run", self.failed)
        print(f"{len(self.ran)} of {len(self.tried)} fields ran; never: {never}; moved: {self.moved}")
        print("\n".join(f"  could not be built or run: {line}" for line in self.failed))


def others(name: str, value: Any) -> list[Any]:
    """Other values for field `name`, which is `value`."""
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    match value:
        case None:
            return [True, 1, 0.5, "other", *SIZES]
        case bool():
            return [not value]
        case int():
            return [value + 1, value * 2 or -1, None]
        case float():
            return [value * 2 + 0.25, None]
        case str():
            return [f"{value}x"]
        case list() | tuple():
            return [[2 * item if isinstance(item, (int, float)) else f"{item}x" for item in value], value[:-1], None]
    return [{**value, 9: "other"}]


def random_pixels() -> Tensor:
    return torch.rand(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def load(family: str) -> LatentVideoModel:
    """The tiny encoder of `family` with weights that no initialisation scales away."""
    source = EncoderSource(architecture={"model_type": family, **ARCHITECTURES[family]})
    model = load_encoder(source, context=ContextRule("full"))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.encoder.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return model


def rebuild(base: LatentVideoModel, family: str, **changed: Any) -> tuple[LatentVideoModel, bool]:
    """`base` with `changed` fields; whether it could take the same weights."""
    transformers = import_transformers()
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**ARCHITECTURES[family], **changed})
    whole = transformers.AutoModel.from_config(config)
    encoder: nn.Module = whole.get_submodule(FAMILIES[family].submodule or "")
    weights = base.encoder.state_dict()
    same = shapes(weights) == shapes(encoder.state_dict())
    if same:
        encoder.load_state_dict(weights)
    return LatentVideoModel(encoder.eval(), base.processor, FAMILIES[family], context=base.context).eval(), same


def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def config_outcome(family: str) -> Outcome:
    """Every field of the family's config perturbed, one at a time."""
    base, pixels, outcome = load(family), random_pixels(), Outcome()
    latents, fields = base.encode(pixels), encoder_fields(base)
    assert torch.equal(latents, base.encode(pixels))
    values = {**base.config.to_dict(), "attn_implementation": base.config._attn_implementation}
    for name, value in perturbed(values, outcome):
        try:
            model, same_weights = rebuild(base, family, **{name: value})
            changed = model.encode(pixels)
        except Exception as error:  # whatever the library raises: the field is listed
            outcome.failed.append(f"{name}={value!r}: {type(error).__name__}")
            continue
        outcome.ran.add(name)
        found = encoder_fields(model)
        assert json.loads(json.dumps(found)) == found
        if not torch.equal(latents, changed):
            outcome.moved += [f"{name}={value!r}"] * same_weights
            outcome.unnoticed += [f"{name}={value!r}"] * (found == fields)
    return outcome


def encoder_fields(model: LatentVideoModel) -> dict[str, Any]:
    """The encoder's part of a spec without the digest of its weights, which must not be what notices."""
    return {name: value for name, value in hard_keys(model)["encoder"].items() if name != "weights"}


def processor_outcome(family: str) -> Outcome:
    """Every field of the family's processor perturbed, one at a time."""
    model, outcome = load(family), Outcome()
    frames = torch.randint(0, 256, (1, 4, 20, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    processor, pixels = model.processor, model.preprocess(frames)
    names = {*vars(processor), *type(processor).valid_kwargs.__annotations__, "default_to_square"}
    values = {name: getattr(processor, name, None) for name in sorted(names) if not name.startswith("_")}
    for name, value in perturbed(values, outcome):
        try:
            model.processor = with_field(processor, name, value)
            changed = model.preprocess(frames)
        except Exception as error:  # whatever the library raises: the field is listed
            outcome.failed.append(f"{name}={value!r}: {type(error).__name__}")
            continue
        outcome.ran.add(name)
        found = processor_fields(model.processor)
        assert json.loads(json.dumps(found)) == found
        if not torch.equal(pixels, changed):
            outcome.moved.append(f"{name}={value!r}")
            outcome.unnoticed += [f"{name}={value!r}"] * (found == processor_fields(processor))
    return outcome


def with_field(processor: Any, name: str, value: Any) -> Any:
    """A copy as its class makes it from a file; None, which it takes for "not given", is set afterwards."""
    if value is not None:
        return type(processor)(**{**processor.to_dict(), name: value})
    changed = copy.deepcopy(processor)
    setattr(changed, name, None)
    return changed


def perturbed(values: dict[str, Any], outcome: Outcome) -> Iterator[tuple[str, Any]]:
    outcome.tried.update(values)
    return ((name, value) for name, present in values.items() for value in others(name, present) if value != present)


def test_every_family_is_perturbed() -> None:
    assert set(ARCHITECTURES) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_config_field_keeps_every_bit_or_is_noticed(
    family: str, record_property: Callable[[str, object], None]
) -> None:
    outcome = config_outcome(family)
    outcome.report(record_property)
    assert outcome.unnoticed == []
    assert len(outcome.ran) >= 0.75 * len(outcome.tried) >= 18
    moved = {line.split("=")[0] for line in outcome.moved}
    assert moved >= {"hidden_act", "layer_norm_eps", "num_attention_heads"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_field_keeps_every_bit_or_is_noticed(
    family: str, record_property: Callable[[str, object], None]
) -> None:
    outcome = processor_outcome(family)
    outcome.report(record_property)
    assert outcome.unnoticed == []
    assert len(outcome.ran) >= 0.75 * len(outcome.tried) >= 12
    moved = {line.split("=")[0] for line in outcome.moved}
    assert moved >= {"do_normalize", "image_mean", "image_std", "resample", "rescale_factor"}


def test_a_field_that_is_wrongly_ignored_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "IGNORED_FIELDS", {*identity.IGNORED_FIELDS, "hidden_act"})
    assert config_outcome("vit").unnoticed == ["hidden_act='relu'", "hidden_act='gelu_new'"]


def test_a_field_that_a_library_adds_counts_once_it_is_set() -> None:
    transformers = import_transformers()

    class NewerConfig(transformers.ViTConfig):  # type: ignore[misc, name-defined]
        model_type = "vit"
        gate: float = 0.5
        scaling: dict[str, Any] | None = None

    before = identity.architecture_fields(transformers.ViTConfig(**VIT))
    assert identity.architecture_fields(NewerConfig(**VIT)) == before
    changed = NewerConfig(**VIT, gate=0.25, scaling={"factor": (1, 2)})
    assert identity.architecture_fields(changed) == {**before, "gate": 0.25, "scaling": {"factor": [1, 2]}}
    assert identity.architecture_fields(transformers.ViTConfig(**VIT, gate=0.25)) == {**before, "gate": 0.25}


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_an_encoder_are_one_encoder(family: str) -> None:
    """Labels, a classifier's settings and training options come with a copy, and are not part of it."""
    base = load(family)
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "problem_type": "regression", "architectures": ["Classifier"]}
    copied, _ = rebuild(base, family, **labels, output_hidden_states=True, attention_probs_dropout_prob=0.5)
    assert hard_keys(copied) == hard_keys(base)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_form_has_the_listed_fields_alone(family: str) -> None:
    hard = {**hard_keys(load(family)), "codec": "float16"}
    first = first_form(hard)
    assert first_form(first) == first != hard
    assert set(first["encoder"]) == {"architecture", "dtype", "revision", "weights"}
    assert set(first["encoder"]["architecture"]) <= set(identity.ARCHITECTURE_FIELDS)
    assert {**first, "encoder": None, "processor": None} == {**hard, "encoder": None, "processor": None}
    for imported in ({"encoder": "mine"}, {"encoder": {"fields": "mine"}, "processor": {}}):
        assert first_form(imported) == imported
