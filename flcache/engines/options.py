"""Options of the engines. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from flcache.bounds import NonNegative, Positive


@dataclass(frozen=True)
class RayOptions:
    """What Ray keeps free for each task. A task has one encoder and its decoding processes."""

    cpus: Positive = 2
    gpus: NonNegative = 0.0
    """1 gives every task a GPU of its own; a fraction lets tasks share one; 0 encodes on CPUs."""
