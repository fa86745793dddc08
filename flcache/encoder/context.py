"""Context modes: which steps are encoded jointly, and so what each latent step has seen.

step      every step alone
window    disjoint windows of k steps, each jointly; the last may be shorter
prefix    the steps before s from their own frames alone, the later ones from the whole clip: a context and its targets
full      the whole clip jointly

A mode is a list of passes. A pass encodes the frames of a range of steps jointly and keeps some of these steps, each of
which has seen all frames of the range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from flcache.bounds import Positive
from flcache.errors import EncoderError

Mode = Literal["step", "window", "prefix", "full"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class ContextRule:
    """How the steps of a clip are encoded. Raises EncoderError where the values contradict each other."""

    mode: Mode = field(default="step", metadata={"key": "context"})
    """One of those described above; see also docs/leak-rule.md."""
    window: Positive | None = None
    """Steps encoded jointly by `window`."""
    prefix_steps: Positive | None = None
    """Steps of the context that `prefix` encodes alone; null is half of the clip."""
    repeat_frames: bool = False
    """With `step`: every frame is a step; a video encoder gets it repeated to the length of its step, as V-JEPA 2-AC
    does with V-JEPA 2 (arXiv 2506.09985). No effect on image encoders, where every frame is a step anyway."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise EncoderError(f'encode.context: "{self.mode}" is none of {", ".join(MODES)}')
        if (self.window is not None) != (self.mode == "window"):
            raise EncoderError(
                'encode.window: it belongs to "encode.context=window", which needs it: the steps that are encoded '
                "jointly; set both or neither"
            )
        if self.prefix_steps is not None and self.mode != "prefix":
            raise EncoderError(f'encode.prefix_steps: it belongs to "encode.context=prefix", not to "{self.mode}"')
        if self.repeat_frames and self.mode != "step":
            raise EncoderError(f'encode.repeat_frames: it belongs to "encode.context=step", not to "{self.mode}"')

    def as_dict(self, num_steps: int) -> dict[str, Any]:
        """The `context` of a spec, for clips of `num_steps` steps."""
        repeated = {"repeat_frames": True} if self.repeat_frames else {}
        return {"mode": self.mode, **repeated, "seen_until": seen_until(self, num_steps)}

    @classmethod
    def from_dict(cls, context: Mapping[str, Any]) -> ContextRule:
        """The rule whose `as_dict` is the `context` of a spec."""
        mode, first = context["mode"], int(context["seen_until"][0]) + 1  # steps that the first pass has seen
        return cls(
            mode=mode,
            window=first if mode == "window" else None,
            prefix_steps=first if mode == "prefix" else None,
            repeat_frames=bool(context.get("repeat_frames", False)),
        )


@dataclass(frozen=True)
class Pass:
    """One joint forward pass over `steps`; only those in `kept` are kept."""

    steps: range
    kept: range


def passes(rule: ContextRule, num_steps: int) -> list[Pass]:
    """The passes that make a clip of `num_steps` steps; together they keep every step once, in order.

    Raises EncoderError for a prefix that leaves no context or no target.
    """
    whole = range(num_steps)
    if rule.mode == "full":
        return [Pass(whole, whole)]
    if rule.mode == "prefix":
        prefix = num_steps // 2 if rule.prefix_steps is None else rule.prefix_steps
        if not 0 < prefix < num_steps:
            raise EncoderError(
                f"encode.prefix_steps: a prefix of {prefix} steps leaves no context or no target in clips of "
                f"{num_steps}; choose 1 to {num_steps - 1}"
            )
        return [Pass(whole[:prefix], whole[:prefix]), Pass(whole, whole[prefix:])]
    length = rule.window or 1
    pieces = [whole[start : start + length] for start in range(0, num_steps, length)]
    return [Pass(piece, piece) for piece in pieces]


def seen_until(rule: ContextRule, num_steps: int) -> list[int]:
    """For each step the last step whose pixels could have influenced it."""
    return [encoded.steps[-1] for encoded in passes(rule, num_steps) for _ in encoded.kept]
