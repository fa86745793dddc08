"""What signals do: end a command tidily, as Ctrl-C does; training first finishes its step and writes a checkpoint.

SIGTERM, SIGHUP and SIGUSR1 end every command. Slurm sends the first, and any that `sbatch --signal` names.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

import click

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ANNOUNCING = (signal.SIGTERM, signal.SIGUSR1)
"""They say that the end is near: a training run still has time for a checkpoint."""
_TIDY_S = 4.0
"""Seconds that a command has to unwind after a signal."""


class EndedBy(BaseException):
    """A signal that ends the process. Not an Exception, so that no `except Exception` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._number = number

    def leave(self) -> NoReturn:
        """Say so and exit at once: shutting the interpreter down can take seconds."""
        try:
            click.echo(f"Error: ended by {signal.Signals(self._number).name}", err=True)
            sys.stdout.flush()
        finally:
            os._exit(128 + self._number)


def end_on_signals() -> list[EndedBy]:
    """From now on a signal of `ENDING` unwinds the command, and is added to the list that is returned.

    After `_TIDY_S` seconds of unwinding the process exits in any case.
    """
    ended: list[EndedBy] = []

    def unwind(number: int, _: object) -> None:
        ended.append(EndedBy(number))
        for other in ENDING:  # a second one must not interrupt the unwinding
            signal.signal(other, signal.SIG_IGN)
        last_resort = threading.Timer(_TIDY_S, ended[0].leave)
        last_resort.daemon = True
        last_resort.start()
        raise ended[0]

    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:  # `nohup` ignores SIGHUP
            signal.signal(number, unwind)
            # A forked worker, such as a DataLoader's, must die as usual.
            os.register_at_fork(after_in_child=partial(signal.signal, number, signal.SIG_DFL))
    return ended


@contextmanager
def announced_end() -> Iterator[Callable[[], int]]:
    """Inside, a signal of `ANNOUNCING` is only noted: the function that is yielded gives the number of the first, or 0.

    Notes nothing outside the main thread, where Python allows no handlers.
    """
    noted: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        heeded = [number for number in ANNOUNCING if signal.getsignal(number) != signal.SIG_IGN]
        # A second one changes nothing: both Slurm and torchrun may send it.
        before = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in heeded}
    try:
        yield lambda: noted[0] if noted else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
