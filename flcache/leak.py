"""The leak rule: a context must not have seen the future it is asked to predict.

Video encoders attend in both directions of time. Each latent step `t` therefore carries `seen_until[t]`, the last
step whose pixels could have influenced it. A split at `b` (context `< b`, target `>= b`) is legal only if
`max(seen_until[:b]) < b`. This module is the only place where that is decided.
"""

from __future__ import annotations

from collections.abc import Sequence

from flcache.errors import LeakError


def legal_splits(seen_until: Sequence[int]) -> list[int]:
    """Every split `b` in `1 .. len(seen_until) - 1` whose context has not seen step `b` or later."""
    legal: list[int] = []
    furthest = -1
    for step, seen in enumerate(seen_until[:-1]):
        furthest = max(furthest, seen)
        if furthest <= step:
            legal.append(step + 1)
    return legal


def middle_split(seen_until: Sequence[int]) -> int:
    """The legal split nearest to the middle of the clip; the middle where none is legal."""
    middle = len(seen_until) // 2
    return min(legal_splits(seen_until), key=lambda split: abs(split - middle), default=middle)


def check_split(seen_until: Sequence[int], split: int, *, allow_leak: bool = False) -> bool:
    """Whether a split at `split` leaks; False is clean. Raises LeakError if it does and `allow_leak` is False."""
    if not 0 < split < len(seen_until):
        raise LeakError(
            f"a split at step {split} leaves no context or no target: these clips have {len(seen_until)} steps; "
            f"choose 1 to {len(seen_until) - 1}"
        )
    seen = max(seen_until[:split])
    if seen < split:
        return False
    if allow_leak:
        return True
    legal = legal_splits(seen_until)
    splits = f"split at one of {legal}, or " if legal else ""
    raise LeakError(
        f"a context of steps 0 to {split - 1} has already seen step {seen}: its prediction of step {split} would be "
        f'worthless; {splits}encode with "encode.context=step" (every step alone), with "encode.context=window" and '
        f'an "encode.window" that divides {split}, or with "encode.context=prefix" and "encode.prefix_steps={split}"; '
        f'"allow_leak=true" goes on and marks every result'
    )
