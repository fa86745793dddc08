"""When a run stops before its last step: all processes at the same step, whichever of them was asked to."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

Asked = Callable[[], int]
"""The number of the signal that asked this process to stop, or 0."""


def never() -> int:
    return 0


class Stopping:
    """What `asked` answers, agreed upon by all processes. Make one on every process.

    One process heeds its own answer at once. Several exchange theirs on the CPU while the next step runs and stop one
    step later, so that no step waits for the exchange or for a device.
    """

    def __init__(self, asked: Asked, num_processes: int) -> None:
        self._asked, self._together = asked, num_processes > 1
        self._group = dist.new_group(backend="gloo") if self._together else None
        self._exchange: tuple[torch.Tensor, dist.Work] | None = None

    def after_step(self) -> int:
        """The number that all processes stop for, 0 to go on. Call it after the same steps on every process."""
        if not self._together:
            return self._asked()
        agreed = self._exchanged()
        if not agreed:
            answer = torch.tensor(self._asked())
            work = dist.all_reduce(answer, dist.ReduceOp.MAX, group=self._group, async_op=True)
            assert work is not None, "every process is in the group"
            self._exchange = answer, work
        return agreed

    def close(self) -> None:
        """Call it on every process, but not after an error, where others may still wait in the group."""
        if self._together:
            self._exchanged()
            dist.destroy_process_group(self._group)

    def _exchanged(self) -> int:
        """The answer of the exchange under way."""
        if self._exchange is None:
            return 0
        answer, work = self._exchange
        self._exchange = None
        work.wait()
        return int(answer)
