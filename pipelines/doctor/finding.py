"""What one check of this machine found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong"]
"""`note`: flcache works, but slower or without something; `wrong`: what is checked does not work."""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    name: str
    state: State
    found: str
    mend: str | None = None
    """A command or a step that would help."""
    needed: bool = False
    """Whether the configuration cannot do without."""


def checked(name: str, check: Callable[[], Iterable[Finding]], *, mend: str, needed: bool = True) -> Iterator[Finding]:
    """What `check` finds; where it fails in a way that nobody foresaw, that failure, and `mend`.

    Any exception counts: a broken installation raises what it likes.
    """
    try:
        yield from check()
    except Exception as error:
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        yield Finding(name, "wrong", words, mend, needed)
