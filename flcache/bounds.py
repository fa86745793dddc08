"""Types for options: each says which values are allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Bound:
    """A limit that an `Annotated` value must keep."""

    says: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True, eq=False)
class OneOf:
    """The value is a name in `registry`, as it is when the value is checked: users register names of their own."""

    registry: Mapping[str, Any]

    @property
    def says(self) -> str:
        return f"that is one of {', '.join(self.registry)}"

    def holds(self, value: Any) -> bool:
        return value in self.registry


@dataclass(frozen=True, eq=False)
class Formerly:
    """Earlier spellings of the option's values, so that old configurations still load: (then, now) pairs."""

    pairs: tuple[tuple[Any, Any], ...]


Positive = Annotated[int, Bound("of at least 1", lambda value: value >= 1)]
Count = Annotated[int, Bound("of at least 0", lambda value: value >= 0)]
NonNegative = Annotated[float, Bound("of at least 0", lambda value: 0 <= value < float("inf"))]
PositiveFloat = Annotated[float, Bound("above 0", lambda value: 0 < value < float("inf"))]
Fraction = Annotated[float, Bound("from 0 to 1", lambda value: 0 <= value <= 1)]
Share = Annotated[float, Bound("above 0 and at most 1", lambda value: 0 < value <= 1)]
Decay = Annotated[float, Bound("of at least 0 and below 1", lambda value: 0 <= value < 1)]
_DEVICES = ("auto", "cpu", "mps", "cuda")
OptionalPath = Annotated[str, Bound("(a path)", lambda path: path != "")] | None
"""Null also where it names an environment variable that is not set; `Config.require` says so."""
Device = Annotated[str, Bound("such as auto, cpu, mps, cuda or cuda:1", lambda name: name.split(":")[0] in _DEVICES)]
