"""Where a video is: a file, or a range of bytes inside a tar. FFmpeg reads either by an address of its own."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


@dataclass(frozen=True)
class TarMember:
    """A video that lies whole inside a tar."""

    tar: Path
    name: str
    offset: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.tar}/{self.name}"


VideoFile = Path | TarMember


def carrier(file: VideoFile) -> Path:
    """The file that holds its bytes."""
    return file.tar if isinstance(file, TarMember) else file


def size_of(file: VideoFile) -> int:
    return file.num_bytes if isinstance(file, TarMember) else file.stat().st_size


def address(file: VideoFile, scheme: str = "") -> str:
    """What FFmpeg is given: a path that is not absolute could be read as an address or as a list of files."""
    path = os.path.abspath(carrier(file))  # noqa: PTH100  (`..` after a symlink is the file system's to resolve)
    if isinstance(file, TarMember):
        return f"subfile,,start,{file.offset},end,{file.offset + file.num_bytes},,:{scheme}{path}"
    return f"{scheme}{path}"


def open_bytes(file: VideoFile) -> BinaryIO:
    """The bytes of the video, no byte beyond."""
    stream = carrier(file).open("rb")
    return io.BufferedReader(_Range(stream, file)) if isinstance(file, TarMember) else stream


class _Range(io.RawIOBase):
    """A range of an open file as a file of its own."""

    def __init__(self, stream: BinaryIO, member: TarMember) -> None:
        self._stream, self._member, self._position = stream, member, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._member.num_bytes)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._member.num_bytes - self._position))
        self._stream.seek(self._member.offset + self._position)
        read = self._stream.readinto(memoryview(buffer)[:wanted])  # type: ignore[attr-defined]
        self._position += read
        return int(read)

    def close(self) -> None:
        self._stream.close()
        super().close()


def to_message(file: VideoFile) -> Any:
    """As JSON for another process."""
    return [str(file.tar), file.name, file.offset, file.num_bytes] if isinstance(file, TarMember) else str(file)


def from_message(sent: Any) -> VideoFile:
    if isinstance(sent, str):
        return Path(sent)
    tar, name, offset, num_bytes = sent
    return TarMember(Path(tar), name, offset, num_bytes)
