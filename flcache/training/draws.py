"""What a training step draws at random: a function of the seed and of the number of its batch in the run, `draw`.

So a run resumes exactly without the state of any generator, also on another number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from accelerate.utils import set_seed

from flcache.sampling import epoch_order


def drawn_order(boundaries: Sequence[int], *, seed: int, draw: int) -> list[int]:
    """`boundaries` in a random order, the same on all processes."""
    return [boundaries[place] for place in epoch_order(len(boundaries), seed=seed, epoch=draw)]


def seed_noise(*, seed: int, draw: int, process: int) -> None:
    """Seed every generator of this process: noise and dropout differ between processes."""
    set_seed(_hashed(f"noise/{seed}/{draw}/{process}"))


def slices_seed(*, seed: int, draw: int) -> int:
    """The seed of what `sigreg` projects on, the same on all processes."""
    return _hashed(f"slices/{seed}/{draw}")


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"flc1/{text}".encode()).digest()[:4], "little")
