"""Finds what makes a host wait for its device, on tensors of any device, a CPU's too."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select}
"""Operators whose result the host needs: a value, or the size of a tensor that depends on values."""
CALLS = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}
"""The same for what is not dispatched, as it only reads memory on a CPU."""


class Waits:
    """`with Waits(HOST) as waits:` collects in `waits.found` where a host would wait: operator, file and line.

    What the files that end in one of `host` do is done by the host with its own tensors.
    """

    def __init__(self, *host: str) -> None:
        self.found: list[str] = []
        self._host = host
        self._modes = [_Dispatched(self), _Called(self)]

    def __enter__(self) -> Waits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def add(self, name: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if "/flcache/" in frame.filename.rpartition("/lib/")[2]]
        where = ours[-1] if ours else traceback.extract_stack(sys._getframe(2))[-1]
        if not any(frame.filename.endswith(self._host) for frame in ours):
            self.found.append(f"{name} in {where.filename.rpartition('/flcache/')[2]}:{where.lineno}")


class _Dispatched(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        masked = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if func.overloadpacket in READS or masked or _comes_back(func, args, result):
            self._waits.add(str(func))
        return result


class _Called(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CALLS:
            self._waits.add(func.__name__)
        return func(*args, **(kwargs or {}))


def _comes_back(func: Any, args: Any, result: Any) -> bool:
    """Whether `func` copies from a device to the host."""
    if func.overloadpacket is aten.copy_:
        return bool(args[0].device.type == "cpu" != args[1].device.type)
    if func.overloadpacket is aten._to_copy:
        return bool(result.device.type == "cpu" != args[0].device.type)
    return False
