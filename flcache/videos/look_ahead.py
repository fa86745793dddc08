"""A limit for the bytes of decoded clips that wait in memory until they are taken."""

from __future__ import annotations

import threading


class LookAhead:
    """Lets in `limit` bytes of clips that are decoded ahead, and `clips` of them; the clip that is taken next is always
    let in.

    Clips are numbered in the order in which they are taken, and arrive in any order.
    """

    def __init__(self, limit: int, clips: int) -> None:
        self._limit, self._clips = limit, clips
        self._next = 0
        self._held: dict[int, int] = {}
        self.closed = False
        self._changed = threading.Condition()

    def let_in(self, number: int, count: int) -> None:
        """Wait until there is room for the `count` bytes of clip `number`."""
        with self._changed:
            self._held.pop(number, None)  # a clip comes again if its first worker died while sending
            self._changed.wait_for(lambda: self.closed or number == self._next or self._has_room(number, count))
            self._held[number] = count

    def took(self, number: int) -> None:
        """Clip `number` was taken: the following one is next."""
        with self._changed:
            self._held.pop(number, None)
            self._next = number + 1
            self._changed.notify_all()

    def close(self) -> None:
        """No more clips are taken: `let_in` no longer waits."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _has_room(self, number: int, count: int) -> bool:
        return number < self._next + self._clips and sum(self._held.values()) + count <= self._limit
