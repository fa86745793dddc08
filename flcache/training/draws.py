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
    digest = hashlib.sha256(f"flc1/noise/{seed}/{draw}/{process}".encode()).digest()
    set_seed(int.from_bytes(digest[:4], "little"))
