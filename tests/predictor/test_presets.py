"""Presets: the sizes they promise, on the meta device; wrong names and sizes are refused with what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.errors import ConfigError
from flcache.predictor import PREDICTORS, PRESETS, Predictor, PredictorOptions, build_predictor, training_memory_bytes
from flcache.predictor.options import Attention

CHANNELS = 1024


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_count_follows_from_the_shape(preset: str) -> None:
    with torch.device("meta"):
        model = build_predictor(PredictorOptions(preset=preset), (8, 16, 16, CHANNELS))
    shape = PRESETS[preset]
    width, patch = shape.width, CHANNELS * shape.merge**2
    block = 4 * width * (width + 1) + (width + 1) * shape.mlp_width + (shape.mlp_width + 1) * width + 4 * width
    ends = (patch + 1) * width + (width + 1) * patch + 2 * width
    ahead = (32 + 1) * width + (width + 1) * width
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.depth * block + ends + ahead
    assert all(parameter.is_meta for parameter in model.parameters())


def test_published_sizes() -> None:
    sizes = {name: (shape.depth, shape.width, shape.width // shape.heads) for name, shape in PRESETS.items()}
    assert sizes == {"tiny": (4, 192, 32), "small": (12, 384, 64), "base": (12, 768, 64), "large": (24, 1024, 64)}


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("smal", {}, r'predictor.preset: unknown "smal"; did you mean "small"\? choose from tiny, small, base, large'),
        (
            "tiny",
            {"dept": 2},
            r'"dept"; did you mean "depth"\? choose from depth, width, heads, mlp_width, merge',
        ),
        ("tiny", {"depth": "4"}, r"predictor.overrides.depth: '4' is not a whole number of at least 1"),
        ("tiny", {"depth": 0}, r"predictor.overrides.depth: 0 is not a whole number"),
        ("tiny", {"heads": 5}, r"a width of 192 does not split into 5 heads"),
        ("tiny", {"heads": 64}, r"64 heads of a width of 192 have 3 channels each"),
        ("tiny", {"merge": 3}, r"merge: 3 does not divide the latents' grid of 16 x 16 patches"),
    ],
)
def test_wrong_choices_are_refused(preset: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_predictor(PredictorOptions(preset=preset, overrides=overrides), (8, 16, 16, CHANNELS))


def stated(batch_size: int = 1, rollout_steps: int = 1, merge: int = 1, checkpointed: bool = False) -> int:
    """Bytes of a training step of preset S on latents of a V-JEPA 2 ViT-L."""
    return training_memory_bytes(
        PredictorOptions(overrides={"merge": merge}, checkpoint_activations=checkpointed),
        (8, 16, 16, CHANNELS),
        batch_size=batch_size,
        rollout_steps=rollout_steps,
    )


def test_training_memory_is_near_what_was_measured() -> None:
    """By tests/benchmarks/predictor_step.py, on a CPU."""
    assert stated(1) == pytest.approx(1.13e9, rel=0.1)
    assert stated(4) == pytest.approx(3.74e9, rel=0.1)


def test_training_memory_grows_with_what_it_is_for() -> None:
    assert stated(3) - stated(2) == pytest.approx(stated(2) - stated(1), abs=2)
    assert stated(1, rollout_steps=4) > stated(1)
    assert stated(4, checkpointed=True) < 0.4 * stated(4)
    assert stated(1, merge=2) < 0.6 * stated(1)


def autograd_bytes(model: Predictor, latents: Tensor, times: Tensor) -> int:
    """What a forward pass keeps for the backward pass, weights apart."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    batch = LatentBatch(latents, latents, times, torch.ones(times.shape, dtype=torch.bool), ("a", "b"), 4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.forecasts(batch, [4], 4)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("attention", ["joint", "factorised"])
@pytest.mark.parametrize("kind", PREDICTORS)
def test_stated_memory_covers_what_autograd_keeps(kind: str, attention: Attention) -> None:
    overrides = {"depth": 4, "width": 96, "heads": 2, "mlp_width": 384, "merge": 1}
    options, latent_shape = PredictorOptions(kind, "tiny", overrides, attention), (8, 8, 8, 16)
    model = build_predictor(options, latent_shape)
    kept = autograd_bytes(model, torch.randn(2, *latent_shape), torch.arange(8.0).expand(2, 8))
    states = 16 * sum(weight.numel() for weight in model.parameters())
    memory = training_memory_bytes(options, latent_shape, batch_size=2, rollout_steps=4)
    assert 1.0 < (memory - states) / kept < 1.4
