"""How an encoder spent its time: encoding, or waiting for the stage before it or after it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from math import ceil
from typing import TypeVar

T = TypeVar("T")

BUSY = 0.9
"""An encoder that is busy for this share of the time is held back by nothing."""


@dataclass(frozen=True)
class EncoderTimes:
    """Seconds of one or several encoders, from the first batch that each of them got to its last."""

    clips: int = 0
    encoding_s: float = 0.0
    waiting_for_decoding_s: float = 0.0
    waiting_for_storing_s: float = 0.0
    span_s: float = 0.0

    @property
    def busy(self) -> float:
        """Share of the time in which the encoder was encoding, 0 to 1."""
        return min(1.0, self.encoding_s / self.span_s) if self.span_s else 0.0

    @property
    def held_back_by(self) -> str | None:
        """`decode` or `store`; None where the encoder itself is the slowest stage."""
        if self.busy >= BUSY:
            return None
        return "decode" if self.waiting_for_decoding_s >= self.waiting_for_storing_s else "store"

    def advice(self, workers: int, cores: int) -> str:
        """One line about it for a run with `workers` decoding processes on `cores`."""
        said = f"encoder busy {self.busy:.2f}"
        if self.held_back_by == "store":
            return f"{said}; storing held it back: a faster disk or network for cache.dir would help"
        if self.held_back_by is None:
            return said
        wanted = max(workers + 1, ceil(workers / max(self.busy, 0.01)))
        if wanted <= cores:
            return f"{said}; decoding held it back: encode.decode_workers={wanted} would do"
        return f"{said}; decoding held it back, and would want {wanted} cores: this machine has {cores}"


def together(times: Iterable[EncoderTimes]) -> EncoderTimes:
    """Several encoders, or one encoder several times."""
    columns = list(zip(*map(astuple, times), strict=True))
    return EncoderTimes(*map(sum, columns)) if columns else EncoderTimes()


class Clock:
    """Measures the times of one encoder. Its wait for the first batch does not count."""

    def __init__(self) -> None:
        self._waited_s = {"decode": 0.0, "store": 0.0}
        self._began_s: float | None = None
        self._ended_s = self._encoding_s = 0.0
        self._clips = 0

    def waits_for(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items of a stage; the time that they take to come is counted."""
        waiting = iter(items)
        while True:
            with self.waiting(stage):
                item = next(waiting, None)
            if item is None:
                return
            yield item

    @contextmanager
    def waiting(self, stage: str) -> Iterator[None]:
        since_s = time.perf_counter()
        yield
        if self._began_s is None:
            self._began_s = time.perf_counter()
        else:
            self._waited_s[stage] += time.perf_counter() - since_s

    def add(self, clips: int, encoding_s: float) -> None:
        """A batch is encoded."""
        self._clips += clips
        self._encoding_s += encoding_s

    def stop(self) -> None:
        """The last batch is encoded."""
        self._ended_s = time.perf_counter()

    @property
    def times(self) -> EncoderTimes:
        span_s = max(0.0, self._ended_s - (self._began_s or self._ended_s))
        return EncoderTimes(self._clips, self._encoding_s, self._waited_s["decode"], self._waited_s["store"], span_s)
