"""The processes that evaluate a split together: each takes some of its batches, and the main one gets the results.

They equal those of one process bit for bit: results per clip are put into the order of the batches, and sums do not
depend on the order (`add_exactly`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

_Value = TypeVar("_Value")
_Key = TypeVar("_Key", bound=Hashable)
GRID = 2.0**-30
"""Smaller than the rounding error of float32 sums over a batch; float64 adds its multiples exactly below 2 ** 23."""


def add_exactly(total: Tensor, values: Tensor) -> None:
    """Add `values`, rounded to multiples of `GRID`, to `total` (float64): the sum has the same bits in any order."""
    total.add_((values.to(total.device) / GRID).round_(), alpha=GRID)


@dataclass(frozen=True)
class Processes:
    """This process among `count`."""

    rank: int = 0
    count: int = 1
    group: Any = None
    """A process group that exchanges tensors on the CPU."""

    @property
    def main(self) -> bool:
        return self.rank == 0

    def everyones(self, number: int) -> list[int]:
        """The `number` of every process, by rank."""
        if self.count == 1:
            return [number]
        found = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
        torch.distributed.all_gather(found, torch.tensor([number]), group=self.group)
        return [int(one) for one in found]

    def gather(self, value: _Value) -> list[_Value]:
        """On the main process the `value` of every process, by rank; nothing on the others."""
        if self.count == 1:
            return [value]
        found: list[Any] | None = [None] * self.count if self.main else None
        torch.distributed.gather_object(value, found, dst=0, group=self.group)
        return found or []

    def add_up(self, sums: Mapping[_Key, Tensor]) -> dict[_Key, Tensor]:
        """On the main process the sums over all processes, which may lack keys; nothing on the others."""
        if self.count == 1:
            return dict(sums)
        shapes: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(
            shapes, {key: (part.shape, part.dtype) for key, part in sums.items()}, self.group
        )
        total = {}
        for key, (shape, dtype) in {key: form for forms in shapes for key, form in forms.items()}.items():
            total[key] = sums[key].cpu() if key in sums else torch.zeros(shape, dtype=dtype)
            torch.distributed.reduce(total[key], dst=0, group=self.group)
        return total if self.main else {}

    def share(self, make: Callable[[], _Value]) -> _Value:
        """On all processes the result of `make` on the main one."""
        if self.count == 1:
            return make()
        found: list[Any] = [make() if self.main else None]
        torch.distributed.broadcast_object_list(found, src=0, group=self.group)
        value: _Value = found[0]
        return value


ALONE = Processes()
