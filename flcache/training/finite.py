"""Stops a run whose loss is not finite, without waiting for a GPU in every batch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flcache.errors import TrainingError

MOST_PENDING = 1
"""Batches whose losses may still be on their way from a GPU after those of one have been added."""


@dataclass(frozen=True)
class _Losses:
    """Of one batch, on the CPU or on their way there."""

    values: Tensor
    """(1 + B,) the loss, and that of each clip."""
    arrived: Any
    """The `torch.cuda.Event` of the copy; None if they are here."""
    ids: tuple[str, ...]

    def check(self) -> None:
        """Raises TrainingError naming the clips if the loss is not finite."""
        loss, *per_clip = self.values.tolist()
        if math.isfinite(loss):
            return
        broken = [clip for clip, value in zip(self.ids, per_clip, strict=True) if not math.isfinite(value)]
        raise TrainingError(
            f"the loss is {loss}: not finite for clips {', '.join(broken or self.ids)}; look at them with "
            '"flcache verify", or lower "training.learning_rate" or "training.clip_norm" if they are sound'
        )


class LossCheck:
    """Raises TrainingError for the first batch whose loss is not finite, naming its clips.

    On a CPU when the batch is added, before it can change anything. Losses on a GPU are copied back beside its work and
    looked at once they are here, at the latest when the next batch is added. By then the weights may be spoiled: call
    `settle` before they are kept, and before metrics are.
    """

    def __init__(self) -> None:
        self._pending: deque[_Losses] = deque()

    def add(self, loss: Tensor, per_clip: Tensor, ids: Sequence[str]) -> None:
        """`per_clip` (B,) belongs to `ids`."""
        values = torch.cat([loss.detach().reshape(1), per_clip.detach()])
        self._pending.append(_send_back(values, tuple(ids)))
        self._look(MOST_PENDING)

    def settle(self) -> None:
        """Look at all losses that were added; waits for them."""
        self._look(0)

    def _look(self, most_pending: int) -> None:
        while self._pending:
            arrived = self._pending[0].arrived
            if arrived is not None and not arrived.query():
                if len(self._pending) <= most_pending:
                    return
                arrived.synchronize()
            self._pending.popleft().check()


def _send_back(values: Tensor, ids: tuple[str, ...]) -> _Losses:
    if not values.is_cuda:
        return _Losses(values.cpu(), None, ids)
    here = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    here.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(values.device))
    return _Losses(here, arrived, ids)
