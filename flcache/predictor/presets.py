"""Named sizes of predictors, and how one is built from a name and the fields to replace.

`build_predictor` also works under `torch.device("meta")`, where parameters can be counted without memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from flcache.errors import ConfigError
from flcache.predictor.causal import CausalPredictor, check_grid


@dataclass(frozen=True)
class PredictorShape:
    """The size of a predictor."""

    depth: int
    """Transformer blocks."""
    width: int
    """Channels of a token."""
    heads: int
    """Attention heads; `width / heads` must be even and at least 6, for three rotary axes."""
    mlp_width: int
    """Channels inside a block's MLP; four times `width` is usual."""
    merge: int = 1
    """`merge` x `merge` patches share one token; H and W of the latents must be multiples of it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"predictor.overrides.{field.name}: {value!r} is not a whole number of at least 1")
        if self.width % self.heads:
            raise ConfigError(
                f"predictor.overrides: a width of {self.width} does not split into {self.heads} heads; "
                "choose a multiple of heads"
            )
        head_dim = self.width // self.heads
        if head_dim % 2 or head_dim < 6:
            raise ConfigError(
                f"predictor.overrides: {self.heads} heads of a width of {self.width} have {head_dim} channels each; "
                "rotary positions on three axes need an even number of at least 6"
            )


PRESETS: dict[str, PredictorShape] = {
    "tiny": PredictorShape(depth=4, width=192, heads=6, mlp_width=768, merge=2),
    "small": PredictorShape(depth=12, width=384, heads=6, mlp_width=1536),
    "base": PredictorShape(depth=12, width=768, heads=12, mlp_width=3072),
    "large": PredictorShape(depth=24, width=1024, heads=16, mlp_width=4096),
}


def predictor_shape(preset: str, overrides: Mapping[str, Any]) -> PredictorShape:
    """The shape called `preset` with `overrides` in place. Raises ConfigError listing what is allowed."""
    if preset not in PRESETS:
        raise ConfigError(f"predictor.preset: {_unknown(preset, PRESETS)}")
    allowed = [field.name for field in fields(PredictorShape)]
    for name in overrides:
        if name not in allowed:
            raise ConfigError(f"predictor.overrides: {_unknown(name, allowed)}")
    return replace(PRESETS[preset], **overrides)


def build_predictor(
    preset: str, overrides: Mapping[str, Any], *, latent_shape: tuple[int, int, int, int]
) -> CausalPredictor:
    """A fresh predictor for latents of `latent_shape` (T, H, W, D), initialised from torch's generator.

    Its parameters depend on D alone: T, H and W may differ later, as long as `merge` divides H and W.
    """
    shape = predictor_shape(preset, overrides)
    _, height, width, channels = latent_shape
    check_grid(height, width, shape.merge)
    return CausalPredictor(
        channels=channels,
        depth=shape.depth,
        width=shape.width,
        heads=shape.heads,
        mlp_width=shape.mlp_width,
        merge=shape.merge,
    )


def _unknown(name: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    return f'unknown "{name}"; {hint}choose from {", ".join(allowed)}'
