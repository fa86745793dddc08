"""Options of the predictor. Loads no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from flcache.bounds import Fraction, OneOf, Positive, PositiveFloat
from flcache.errors import ConfigError

PREDICTORS: dict[str, str | type] = {
    "causal": "flcache.predictor.causal:CausalPredictor",
    "parallel": "flcache.predictor.parallel:ParallelPredictor",
    "cross_attention": "flcache.predictor.cross_attention:CrossAttentionPredictor",
    "flow_matching": "flcache.predictor.flow_matching:FlowMatchingPredictor",
}
"""By kind: a class, or `module:class` to import when it is first needed. `register_predictor` adds one."""

Attention = Literal["joint", "factorised"]


@dataclass(frozen=True)
class PredictorShape:
    """The size of a transformer."""

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


PRESETS: dict[str, PredictorShape] = {
    "tiny": PredictorShape(depth=4, width=192, heads=6, mlp_width=768, merge=2),
    "small": PredictorShape(depth=12, width=384, heads=6, mlp_width=1536),
    "base": PredictorShape(depth=12, width=768, heads=12, mlp_width=3072),
    "large": PredictorShape(depth=24, width=1024, heads=16, mlp_width=4096),
}


@dataclass(frozen=True)
class FlowOptions:
    """How a flow is sampled, and how it learns to be guided."""

    sampler: Literal["euler", "heun"] = "heun"
    """Heun takes two evaluations of the network per step, Euler one."""
    sampler_steps: Positive = 8
    guidance: PositiveFloat = 1.0
    """1 samples the learned distribution; above 1 exaggerates what the past adds to the last step."""
    context_dropout: Fraction = 0.1
    """Fraction of training clips that show only the last step of their context: what guidance compares with."""


@dataclass(frozen=True)
class PredictorOptions:
    """Which predictor is built, how large, and how it computes."""

    kind: Annotated[str, OneOf(PREDICTORS)] = "causal"
    """`causal` predicts step by step, the others all target steps at once: `parallel` from mask tokens among the
    context's, `cross_attention` from queries of the context, `flow_matching` as samples of a conditional flow."""
    preset: str = "small"
    """`tiny`, `small`, `base` or `large`."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the preset to replace: `depth`, `width`, `heads`, `mlp_width`, `merge`."""
    attention: Attention = "joint"
    """`factorised` alternates between the steps of one place and the places of one step: cheaper for long clips."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more work."""
    compile: bool = False
    """Run blocks through `torch.compile`."""
    actions: bool = False
    """Condition each step on its `actions`, which `dataset.arrays` keeps; for `causal` only."""
    flow: FlowOptions = field(default_factory=FlowOptions)
    """For `flow_matching` only."""

    def shape(self) -> PredictorShape:
        """The preset with its overrides. Raises ConfigError listing what is allowed."""
        if self.preset not in PRESETS:
            raise ConfigError(f"predictor.preset: {unknown(self.preset, PRESETS)}")
        allowed = [entry.name for entry in fields(PredictorShape)]
        for name in self.overrides:
            if name not in allowed:
                raise ConfigError(f"predictor.overrides: {unknown(name, allowed)}")
        return replace(PRESETS[self.preset], **self.overrides)


def unknown(name: str, allowed: Iterable[str]) -> str:
    """An error text for a `name` that is none of those `allowed`."""
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    return f'unknown "{name}"; {hint}choose from {", ".join(allowed)}'
