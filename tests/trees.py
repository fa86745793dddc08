"""The files below a folder, to be compared; a failed comparison says which differ, not how every byte of them does."""

from __future__ import annotations

from pathlib import Path

import xxhash


class Content(bytes):
    """The bytes of a file, shown by their number and digest, or whole where they are a few lines of text."""

    def __repr__(self) -> str:
        if len(self) < 4000 and self.isascii() and b"\0" not in self:
            return self.decode()
        return f"<{len(self)} bytes, {xxhash.xxh3_64_hexdigest(self)}>"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` by its name there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): Content(path.read_bytes()) for path in files}
