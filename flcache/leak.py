"""The leak rule: a context must not have seen the future it is asked to predict.

Video encoders attend in both directions of time. Each latent step `t` therefore carries `seen_until[t]`, the last
step whose pixels could have influenced it. A boundary `b` (context `< b`, target `>= b`) is legal only if
`max(seen_until[:b]) < b`. Only this module decides that.
"""

from __future__ import annotations

from collections.abc import Sequence

from flcache.errors import LeakError


def legal_boundaries(seen_until: Sequence[int]) -> list[int]:
    """Every boundary `b` in `1 .. len(seen_until) - 1` whose context has not seen step `b` or later."""
    legal: list[int] = []
    furthest = -1
    for step, seen in enumerate(seen_until[:-1]):
        furthest = max(furthest, seen)
        if furthest <= step:
            legal.append(step + 1)
    return legal


def middle_boundary(seen_until: Sequence[int]) -> int:
    """The legal boundary nearest to the middle of the clip; the middle where none is legal."""
    middle = len(seen_until) // 2
    return min(legal_boundaries(seen_until), key=lambda boundary: abs(boundary - middle), default=middle)


def check_boundary(seen_until: Sequence[int], boundary: int, *, allow_leak: bool = False) -> bool:
    """Whether a context that ends at `boundary` leaks. Raises LeakError if it does, unless `allow_leak`."""
    if not 0 < boundary < len(seen_until):
        raise LeakError(
            f"a boundary at step {boundary} leaves no context or no target: these clips have {len(seen_until)} steps; "
            f"choose 1 to {len(seen_until) - 1}"
        )
    seen = max(seen_until[:boundary])
    if seen < boundary:
        return False
    if allow_leak:
        return True
    legal = legal_boundaries(seen_until)
    others = f"end the context at one of {legal}, or " if legal else ""
    raise LeakError(
        f"a context of steps 0 to {boundary - 1} has already seen step {seen}: its prediction of step {boundary} would "
        f'be worthless; {others}encode with "encode.context=step" (every step alone), with "encode.context=window" and '
        f'an "encode.window" that divides {boundary}, or with "encode.context=prefix" and '
        f'"encode.prefix_steps={boundary}"; "allow_leak=true" goes on and marks every result'
    )
