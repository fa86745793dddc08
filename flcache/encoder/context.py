"""Context modes: which steps are encoded jointly, and so what each latent step has seen.

A mode is a partition of the T steps into groups; a group is encoded from its own frames alone. `step` has T groups
of one step, `full` has one group of T.
"""

from __future__ import annotations

from flcache.errors import EncoderError

MODES = ("step", "full")


def groups(mode: str, num_steps: int) -> list[range]:
    """The groups of steps that are encoded jointly, in order, all of one length. Raises EncoderError."""
    if mode == "step":
        return [range(step, step + 1) for step in range(num_steps)]
    if mode == "full":
        return [range(num_steps)]
    raise EncoderError(f'encode.context: "{mode}" is none of {", ".join(MODES)}')


def seen_until(mode: str, num_steps: int) -> list[int]:
    """For each step the last step whose pixels could have influenced it."""
    return [group[-1] for group in groups(mode, num_steps) for _ in group]
