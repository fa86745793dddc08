"""A ring of reused buffers that threads fill ahead of the reader: memory is the ring and no more.

Threads, not processes: `preadv` releases the interpreter lock, and what it fills needs no second copy.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from flcache.cache.codecs.registry import PayloadLayout

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Slot:
    """Room for one batch of B clips."""

    payloads: tuple[Tensor, ...]
    """What is read, page-aligned, and page-locked for CUDA: (B, steps, ...) per payload, or (1, steps, ...)."""
    views: tuple[tuple[memoryview, ...], ...]
    """Their bytes, for each of the B clips by payload; one place for all clips where each is decoded at once."""
    scratch: tuple[memoryview, ...]
    """Room for all steps of one clip, a view per payload; empty where all steps are read anyway."""
    decoded: Tensor | None
    """(B, steps, H, W, D) float32, for clips that are decoded at once."""


@dataclass(frozen=True)
class SlotShape:
    layouts: tuple[PayloadLayout, ...]
    batch_size: int
    num_steps: int
    decodes: bool
    """Whether clips are decoded on the CPU, each when it has been read."""
    checks: bool
    """Whether whole clips are read to check them."""
    pinned: bool


def make_slot(shape: SlotShape) -> Slot:
    """An empty slot, its memory on pages of its own."""
    room = 1 if shape.decodes else shape.batch_size
    payloads = [
        _aligned(layout.dtype, (room, shape.num_steps, *layout.shape[1:]), pinned=shape.pinned)
        for layout in shape.layouts
    ]
    views = [tuple(_bytes_of(payload[clip]) for payload in payloads) for clip in range(room)]
    cuts = shape.num_steps < shape.layouts[0].shape[0]
    whole = [_aligned(layout.dtype, layout.shape) for layout in shape.layouts if cuts and shape.checks]
    decoded = (shape.batch_size, shape.num_steps, *shape.layouts[0].shape[1:])
    return Slot(
        payloads=tuple(payloads),
        views=tuple(views * (shape.batch_size // room)),
        scratch=tuple(map(_bytes_of, whole)),
        decoded=_aligned(np.dtype(np.float32), decoded) if shape.decodes else None,
    )


def read_ahead(
    items: Iterator[Item], slots: Sequence[Slot], threads: int, read: Callable[[Item, Slot], Result]
) -> Generator[tuple[Result, Slot], None, None]:
    """`read(item, slot)` of every item, in order, run by `threads` threads as far ahead as there are slots.

    What is yielded may use its slot until the next is asked for. An exception of `read` is raised here, in its place.
    Closing the iterator waits for what is being read and ends the threads.
    """
    free = deque(slots)
    pending: deque[_Order[Item, Result]] = deque()
    crew = _Crew(threads, read)

    def fill() -> None:
        while free:
            for item in items:
                pending.append(_Order(item, free.popleft()))
                crew.give(pending[-1])
                break
            else:
                return

    try:
        fill()
        while pending:
            order = pending.popleft()
            yield order.result(), order.slot
            free.append(order.slot)
            fill()
    finally:
        crew.dismiss()


class _Order(Generic[Item, Result]):
    """One item to be read into a slot. Futures of concurrent.futures took 35 of 145 microseconds a batch."""

    def __init__(self, item: Item, slot: Slot) -> None:
        self.item, self.slot = item, slot
        self._answer: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()

    def carry_out(self, read: Callable[[Item, Slot], Result]) -> None:
        try:
            self._answer.put((read(self.item, self.slot), None))
        except BaseException as error:
            self._answer.put((None, error))

    def result(self) -> Result:
        """What `read` returned or raised, once it has."""
        result, error = self._answer.get()
        if error is None:
            return cast(Result, result)
        try:
            raise error
        finally:
            del error  # it holds this frame, and with it the slot


Orders = SimpleQueue[_Order[Any, Any] | None]


class _Crew:
    """Threads that carry out orders until they are dismissed, or forgotten, or the interpreter ends.

    They are daemons: the interpreter, which waits for others before it calls anything, would wait for ever on an
    iterator that was left open.
    """

    def __init__(self, threads: int, read: Callable[[Any, Slot], Any]) -> None:
        self._orders: Orders = SimpleQueue()
        names = [f"flcache-read-{number}" for number in range(threads)]
        crew = [Thread(target=_serve, args=(self._orders, read), name=name, daemon=True) for name in names]
        self.dismiss = weakref.finalize(self, _dismiss, self._orders, crew)
        """Waits for what is being read, and ends the threads."""
        for thread in crew:
            thread.start()

    def give(self, order: _Order[Any, Any]) -> None:
        self._orders.put(order)


def _serve(orders: Orders, read: Callable[[Any, Slot], Any]) -> None:
    _one_core()
    while (order := orders.get()) is not None:
        order.carry_out(read)
        del order  # it holds what was read for a consumer who may be gone


def _dismiss(orders: Orders, crew: Sequence[Thread]) -> None:
    with suppress(Empty):
        while True:
            orders.get_nowait()
    for _ in crew:
        orders.put(None)
    for thread in crew:
        if thread.ident is not None and thread is not current_thread():  # where garbage is collected, anyone may be
            thread.join()


def _one_core() -> None:
    """Keep torch's operations of this thread on one core: where all cores are busy, sharing them is 3 times slower."""
    torch.set_num_threads(1)


def _aligned(dtype: np.dtype[Any], shape: tuple[int, ...], *, pinned: bool = False) -> Tensor:
    """A tensor for stored values, on pages of its own."""
    stored = torch.from_numpy(np.empty(0, dtype=dtype)).dtype
    if pinned:
        return torch.empty(shape, dtype=stored, pin_memory=True)
    # Private: shared memory, which is what mmap gives unless told otherwise, has no huge pages on most systems.
    pages = mmap.mmap(-1, max(1, dtype.itemsize * prod(shape)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # other systems, and kernels without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=stored, count=prod(shape)).view(shape)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
