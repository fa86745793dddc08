"""Named sizes of predictors, and how one is built from a name and the fields to replace.

`build_predictor` also works under `torch.device("meta")`, where parameters can be counted without memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from flcache.errors import ConfigError
from flcache.predictor.causal import CausalPredictor
from flcache.predictor.cross_attention import CrossAttentionPredictor
from flcache.predictor.flow_matching import FlowMatchingPredictor, FlowOptions
from flcache.predictor.interface import Predictor
from flcache.predictor.parallel import ParallelPredictor
from flcache.predictor.tokens import check_grid
from flcache.predictor.transformer import Attention, Block, TransformerSize

Kind = Literal["causal", "parallel", "cross_attention", "flow_matching"]


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
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"predictor.overrides.{entry.name}: {value!r} is not a whole number of at least 1")
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


@dataclass(frozen=True)
class PredictorOptions:
    """Which predictor is built, and how it computes; its size is a `PredictorShape`."""

    kind: Kind = "causal"
    attention: Attention = "joint"
    checkpoint_activations: bool = False
    compile: bool = False
    """Blocks go through `torch.compile`, each kind of block once."""
    flow: FlowOptions = field(default_factory=FlowOptions)
    """For `flow_matching` only."""


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
    allowed = [entry.name for entry in fields(PredictorShape)]
    for name in overrides:
        if name not in allowed:
            raise ConfigError(f"predictor.overrides: {_unknown(name, allowed)}")
    return replace(PRESETS[preset], **overrides)


def build_predictor(
    preset: str,
    overrides: Mapping[str, Any],
    *,
    latent_shape: tuple[int, int, int, int],
    options: PredictorOptions = PredictorOptions(),
) -> Predictor:
    """A fresh predictor for latents of `latent_shape` (T, H, W, D), initialised from torch's generator.

    Its parameters depend on D alone: T, H and W may differ later, as long as `merge` divides H and W.
    """
    shape = predictor_shape(preset, overrides)
    _, height, width, channels = latent_shape
    check_grid(height, width, shape.merge)
    predictor = build_shape(shape, channels, options)
    if options.compile:
        for module in predictor.modules():
            if isinstance(module, Block):
                module.compile()
    return predictor


def build_shape(shape: PredictorShape, channels: int, options: PredictorOptions) -> Predictor:
    """As `build_predictor`, of any shape, for latents of `channels`; never compiled."""
    size = TransformerSize(
        depth=shape.depth,
        width=shape.width,
        heads=shape.heads,
        mlp_width=shape.mlp_width,
        attention=options.attention,
        checkpoint_activations=options.checkpoint_activations,
    )
    match options.kind:
        case "causal":
            return CausalPredictor(size, channels=channels, merge=shape.merge)
        case "parallel":
            return ParallelPredictor(size, channels=channels, merge=shape.merge)
        case "cross_attention":
            return CrossAttentionPredictor(size, channels=channels, merge=shape.merge)
        case "flow_matching":
            return FlowMatchingPredictor(size, channels=channels, merge=shape.merge, flow=options.flow)
    raise ConfigError(f"predictor.kind: {_unknown(options.kind, get_args(Kind))}")


def _unknown(name: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    return f'unknown "{name}"; {hint}choose from {", ".join(allowed)}'
