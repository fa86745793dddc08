"""An encoder that trains: which parts, at which rates, and with how many activations kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flcache.batch import ChannelStatistics, VideoBatch
from flcache.encoder import ContextRule, EncoderSource, LatentVideoModel, load_encoder
from flcache.errors import EncoderError
from flcache.predictor import PredictorOptions, build_predictor
from flcache.training import Objective, TrainingOptions, WorldModel, build_optimiser, learning_rate_schedule

sys.path.insert(0, str(Path(__file__).parent))
from train_families import ARCHITECTURES, LEADING_TOKENS, Clips

LAYERS, FRAMES = 3, 4


DROPOUT = {"vit", "deit", "dinov2", "videomae"}
"""Families tested with dropout."""
NO_LAST_NORM = {"videomae", "clip_vision_model"}
"""None that latents depend on."""


def an_encoder(family: str, trainable: bool | list[str] = True, **options: Any) -> LatentVideoModel:
    architecture = {"model_type": family, **ARCHITECTURES[family], "num_hidden_layers": LAYERS}
    architecture |= {"hidden_dropout_prob": 0.1} if family in DROPOUT else {}
    source = EncoderSource(architecture=architecture, leading_tokens=LEADING_TOKENS.get(family), **options)
    return load_encoder(source, context=ContextRule("full"), trainable=trainable)


def world_model(encoder: LatentVideoModel) -> WorldModel:
    shape = encoder.latent_shape(FRAMES)
    sizes = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 24, "merge": 1}
    predictor = build_predictor(PredictorOptions("parallel", "tiny", sizes), shape)
    statistics = ChannelStatistics(torch.zeros(shape[-1]), torch.ones(shape[-1]))
    return WorldModel(predictor, statistics, boundaries=[1], objective=Objective(), encoder=encoder)


def rates(encoder: LatentVideoModel, **options: Any) -> dict[str, float]:
    """The learning rate of every parameter of the encoder, after the warm-up."""
    optimiser = build_optimiser({"predictor": nn.Linear(2, 2), "encoder": encoder}, TrainingOptions(**options))
    groups = optimiser.param_groups
    assert len({id(parameter) for group in groups for parameter in group["params"]}) == sum(
        len(group["params"]) for group in groups
    )
    found = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert groups[0]["lr"] == options["learning_rate"], "what is logged is the predictor's"
    named = encoder.encoder.named_parameters()
    return {name: found[id(parameter)] for name, parameter in named if parameter.requires_grad}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_rate_falls_from_layer_to_layer_to_the_embeddings(family: str) -> None:
    found = rates(an_encoder(family), learning_rate=8.0, encoder_learning_rate=1.0, layer_decay=0.5)
    by_depth = [{name for name, rate in found.items() if rate == 0.5**above} for above in range(LAYERS + 2)]
    assert sum(map(len, by_depth)) == len(found)
    assert all("embed" in name or "pre_layrnorm" in name for name in by_depth[-1]) and len(by_depth[-1]) > 1
    for above in range(1, LAYERS + 1):
        assert by_depth[above] and all(f".{LAYERS - above}." in f".{name}" for name in by_depth[above])
    assert bool(by_depth[0]) == (family not in NO_LAST_NORM) and all("norm" in name for name in by_depth[0])


def test_a_rate_for_the_encoder_and_by_default_the_predictors() -> None:
    encoder = an_encoder("dinov2")
    assert set(rates(encoder, learning_rate=8.0, encoder_learning_rate=1.0).values()) == {1.0}
    assert set(rates(encoder, learning_rate=8.0).values()) == {8.0}
    parts = {"predictor": nn.Linear(2, 2), "encoder": encoder}
    assert len(build_optimiser(parts, TrainingOptions()).param_groups) == 2, "as in checkpoints of earlier versions"
    optimiser = build_optimiser(parts, TrainingOptions(layer_decay=0.5, warmup_steps=4))
    learning_rate_schedule(optimiser, TrainingOptions(warmup_steps=4))
    assert len({group["lr"] for group in optimiser.param_groups}) == LAYERS + 2
    for group in optimiser.param_groups:
        assert group["lr"] == pytest.approx(group["initial_lr"] / 4)


def test_an_encoder_without_a_list_of_layers_has_no_layer_decay() -> None:
    encoder = an_encoder("dinov2")
    encoder.config.num_hidden_layers = 7
    with pytest.raises(EncoderError, match=r"training\.layer_decay: .* has no list of 7 layers"):
        rates(encoder, learning_rate=1.0, layer_decay=0.5)


def batch(encoder: LatentVideoModel) -> VideoBatch:
    return next(iter(Clips(encoder.num_steps(FRAMES), 0, 1)))


def test_frozen_parts_have_neither_gradients_nor_optimiser_state() -> None:
    encoder = an_encoder("vjepa2", ["layer.2"])
    model = world_model(encoder)
    optimiser = build_optimiser({"predictor": model.predictor, "encoder": encoder}, TrainingOptions(learning_rate=1e-2))
    for _ in range(2):  # the predictor's head is zero in the first
        model(batch(encoder)).loss.backward()
        optimiser.step()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    kept = {name for name, parameter in model.named_parameters() if parameter in optimiser.state}
    assert trained == kept and {name for name in trained if "predictor" not in name} == {
        name for name, _ in model.named_parameters() if name.startswith("encoder.encoder.layer.2.")
    }


def kept_bytes(encoder: LatentVideoModel) -> tuple[int, Tensor, list[Tensor]]:
    """Bytes of activations that a forward pass keeps for the backward one, the loss, and the gradients."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    encoder.train()
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = encoder(batch(encoder).frames).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return sum(kept.values()), loss, [each.grad for each in encoder.parameters() if each.grad is not None]


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_checkpointed_activations_give_the_same_gradients_and_are_not_kept(family: str) -> None:
    (most, loss, gradients), (least, again, others) = (
        kept_bytes(an_encoder(family, checkpoint_activations=checkpointed)) for checkpointed in (False, True)
    )
    assert torch.equal(loss, again) and len(gradients) == len(others)
    assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))
    assert least < most / 3


def test_a_frozen_encoder_and_targets_checkpoint_nothing() -> None:
    frozen = an_encoder("vit", trainable=False, checkpoint_activations=True)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in frozen.modules())
    model = world_model(an_encoder("vit", checkpoint_activations=True)).train()
    assert model.target_encoder is not None and not model.target_encoder.training
