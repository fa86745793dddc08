"""Presets: the sizes they promise, on the meta device; wrong names and sizes are refused with what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flcache.errors import ConfigError
from flcache.predictor import PRESETS, build_predictor

CHANNELS = 1024


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_count_follows_from_the_shape(preset: str) -> None:
    with torch.device("meta"):
        model = build_predictor(preset, {}, latent_shape=(8, 16, 16, CHANNELS))
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
        build_predictor(preset, overrides, latent_shape=(8, 16, 16, CHANNELS))
