"""Progress of long work, with rate, time left and failures: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from flcache.cache import Verification, committed_shards, verify_cache
from flcache.cache.storage import Location

PLAIN_EVERY_S = 15.0


def is_main_process() -> bool:
    """Whether this is the first process of `torchrun` or `accelerate launch`, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


class Progress:
    """A context manager that counts `total` things called `unit`. Writes to stderr: stdout is for results.

    Of several processes only the first shows anything.
    """

    def __init__(self, title: str, total: int, unit: str, *, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.failed, self.note = done, 0, ""
        self._shown = is_main_process()
        self._started, self._printed, self._first = time.monotonic(), time.monotonic(), done
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
            disable=not (self._shown and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task(title, total=total, completed=done, state="")

    def advance(self, *, failed: bool = False, note: str = "", count: int = 1) -> None:
        """`count` more are done, or have failed; `note` stays beside the bar until the next."""
        self.done += count
        self.failed += count * failed
        self.note = note or self.note
        self._bar.update(self._task, completed=self.done, state=", ".join(self._state()))
        if self._bar.disable and time.monotonic() - self._printed >= PLAIN_EVERY_S:
            self._print_line()

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self._first) / max(1e-9, time.monotonic() - self._started)

    def _state(self) -> list[str]:
        failed = f"{self.failed} failed" if self.failed else ""
        return [part for part in (f"{self.rate:.2f} {self.unit}/s", failed, self.note) if part]

    def _print_line(self) -> None:
        self._printed = time.monotonic()
        if not self._shown:
            return
        rate, *state = self._state()
        left = [f"{(self.total - self.done) / self.rate:.0f} s left"] if self.done < self.total and self.rate else []
        print(", ".join([f"{self.title}: {self.done}/{self.total}", rate, *left, *state]), file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if self._bar.disable and self.done > self._first:
            self._print_line()


def verify_with_progress(location: Location) -> Verification:
    """`flcache.cache.verify_cache` with a progress bar."""
    with Progress("Verifying", sum(1 for _ in committed_shards(location)), "shards") as progress:
        return verify_cache(location, on_shard=lambda damaged: progress.advance(failed=damaged))
