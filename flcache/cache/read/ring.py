"""A ring of reused batch buffers that threads fill ahead of the consumer; batches take no other memory.

Threads, not processes: `preadv` releases the interpreter lock, and fills memory that the consumer uses without a copy.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from math import prod
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from flcache.cache.codecs.protocol import PayloadLayout, Shape

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchBuffer:
    """Memory for one batch of B clips, reused for batch after batch."""

    payloads: tuple[Tensor, ...]
    """(B, steps, ...) per payload, or (1, steps, ...) where each clip is decoded before the next is read. Aligned to
    pages; page-locked for CUDA."""
    views: tuple[tuple[memoryview, ...], ...]
    """The memory of each of the B clips, one view per payload."""
    scratch: tuple[memoryview, ...]
    """Memory for all steps of one clip, one view per payload; empty unless parts of clips are to be checked."""
    decoded: Tensor | None
    """(B, steps, H, W, D) float32, where clips are decoded on the CPU."""


@dataclass(frozen=True)
class BufferShape:
    layouts: tuple[PayloadLayout, ...]
    latent_shape: Shape
    """(T, H, W, D) of a decoded clip."""
    batch_size: int
    num_steps: int
    decodes: bool
    """Whether each clip is decoded on the CPU as soon as it has been read."""
    checks: bool
    """Whether clips are read whole to check them."""
    pinned: bool
    """Whether memory is page-locked, for CUDA."""


def make_buffer(shape: BufferShape) -> BatchBuffer:
    room = 1 if shape.decodes else shape.batch_size
    payloads = [
        _aligned(layout.dtype, (room, shape.num_steps, *layout.shape[1:]), pinned=shape.pinned)
        for layout in shape.layouts
    ]
    views = [tuple(_bytes_of(payload[clip]) for payload in payloads) for clip in range(room)]
    cuts = shape.num_steps < shape.latent_shape[0]
    whole = [_aligned(layout.dtype, layout.shape) for layout in shape.layouts if cuts and shape.checks]
    decoded = (shape.batch_size, shape.num_steps, *shape.latent_shape[1:])
    return BatchBuffer(
        payloads=tuple(payloads),
        views=tuple(views * (shape.batch_size // room)),
        scratch=tuple(map(_bytes_of, whole)),
        decoded=_aligned(np.dtype(np.float32), decoded) if shape.decodes else None,
    )


def read_ahead(
    items: Iterator[Item], buffers: Sequence[BatchBuffer], threads: int, read: Callable[[Item, BatchBuffer], Result]
) -> Generator[tuple[Result, BatchBuffer], None, None]:
    """`read(item, buffer)` of every item, in their order, run by `threads` threads as far ahead as there are buffers.

    A yielded buffer is reused once the next is asked for. An exception of `read` is raised here, in the order of the
    items. Closing the iterator waits for reads in progress and ends the threads.
    """
    free = deque(buffers)
    pending: deque[_Request[Item, Result]] = deque()
    crew = _Crew(threads, read)

    def fill() -> None:
        for item in islice(items, len(free)):
            pending.append(_Request(item, free.popleft()))
            crew.give(pending[-1])

    try:
        fill()
        while pending:
            request = pending.popleft()
            yield request.result(), request.buffer
            free.append(request.buffer)
            fill()
    finally:
        crew.dismiss()


class _Request(Generic[Item, Result]):
    """One item to be read into a buffer. A `concurrent.futures.Future` took 35 of 145 microseconds a batch."""

    def __init__(self, item: Item, buffer: BatchBuffer) -> None:
        self.item, self.buffer = item, buffer
        self._answer: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()

    def answer(self, read: Callable[[Item, BatchBuffer], Result]) -> None:
        try:
            self._answer.put((read(self.item, self.buffer), None))
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
            del error  # its traceback holds this frame, and thereby the buffer


Requests = SimpleQueue[_Request[Any, Any] | None]


class _Crew:
    """Threads that answer requests until `dismiss` is called, this object is collected, or the interpreter exits.

    Daemon threads: an iterator that was left open must not block interpreter exit.
    """

    def __init__(self, threads: int, read: Callable[[Any, BatchBuffer], Any]) -> None:
        self._requests: Requests = SimpleQueue()
        names = [f"flcache-read-{number}" for number in range(threads)]
        crew = [Thread(target=_serve, args=(self._requests, read), name=name, daemon=True) for name in names]
        self.dismiss = weakref.finalize(self, _dismiss, self._requests, crew)
        """Waits for reads in progress and ends the threads."""
        for thread in crew:
            thread.start()

    def give(self, request: _Request[Any, Any]) -> None:
        self._requests.put(request)


def _serve(requests: Requests, read: Callable[[Any, BatchBuffer], Any]) -> None:
    torch.set_num_threads(1)  # for this thread: with all cores busy, splitting operations over them is 3 times slower
    while (request := requests.get()) is not None:
        request.answer(read)
        del request  # else its result lives until the next request comes


def _dismiss(requests: Requests, crew: Sequence[Thread]) -> None:
    with suppress(Empty):
        while True:
            requests.get_nowait()
    for _ in crew:
        requests.put(None)
    for thread in crew:
        # The finalizer may run on one of these threads, and a thread cannot join itself.
        if thread.ident is not None and thread is not current_thread():
            thread.join()


def _aligned(dtype: np.dtype[Any], shape: tuple[int, ...], *, pinned: bool = False) -> Tensor:
    """A tensor for stored values, in memory pages that nothing else uses."""
    stored = torch.from_numpy(np.empty(0, dtype=dtype)).dtype
    if pinned:
        return torch.empty(shape, dtype=stored, pin_memory=True)
    # Private: shared memory, the default of mmap, has no huge pages on most systems.
    pages = mmap.mmap(-1, max(1, dtype.itemsize * prod(shape)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # other systems, and kernels without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=stored, count=prod(shape)).view(shape)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
