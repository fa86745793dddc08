"""What a disk cache holds at one moment, while processes change it."""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path

from flcache.remote.disk import LEDGER


def held_bytes(folder: Path) -> int:
    """Of all files there, partial ones too. Nobody claims space meanwhile; a file that is renamed counts once."""
    with suppress(FileNotFoundError), (folder / LEDGER).open("rb") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        sizes = {}
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                sizes[status.st_ino] = status.st_size if path.is_file() and path.name != LEDGER else 0
        return sum(sizes.values())
    return 0
