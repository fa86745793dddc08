"""How many bytes of decoded clips wait in memory for whoever takes them."""

from __future__ import annotations

import threading


class LookAhead:
    """Room for `limit` bytes of clips that are decoded before they are asked for; the next one is always let in.

    Clips are numbered in the order in which they are taken, and arrive in any.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._next = 0
        self._held: dict[int, int] = {}
        self._closed = False
        self._changed = threading.Condition()

    def let_in(self, number: int, count: int) -> None:
        """Wait until there is room for the `count` bytes of clip `number`."""
        with self._changed:
            self._held.pop(number, None)  # it comes anew where its first worker died while sending
            self._changed.wait_for(
                lambda: self._closed or number == self._next or sum(self._held.values()) + count <= self._limit
            )
            self._held[number] = count

    def took(self, number: int) -> None:
        """Clip `number` was taken, and the one behind it is next."""
        with self._changed:
            self._held.pop(number, None)
            self._next = number + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody takes any more: whoever waits goes on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
