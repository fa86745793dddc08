"""Batches on their way to a device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flcache.batch import LatentBatch, VideoBatch


class Copies(TorchDispatchMode):
    """Notes whether copies wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[bool] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._to_copy.default:
            self.waits.append(not kwargs.get("non_blocking", False))
        return function(*args, **(kwargs or {}))


def test_copies_from_pageable_memory_wait() -> None:
    """Sources use their buffers again: a copy that is late would read the next batch."""
    latents, times, valid = torch.zeros(1, 2, 1, 1, 4), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    frames = (torch.zeros(4, 8, 8, 3, dtype=torch.uint8),)
    with Copies() as copies:
        LatentBatch(latents, latents, times, valid, ("a",), 1).to("meta")
        VideoBatch(frames, times, valid, ("a",), 1).to("meta")
    assert copies.waits == [True] * 6
