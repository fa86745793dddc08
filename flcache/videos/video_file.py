"""Where a video is: a file, one at a URL, or a range of bytes inside a tar; and what FFmpeg is given to read it by."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from flcache.videos.remote_path import Place, RemotePath


@dataclass(frozen=True)
class TarMember:
    """A video that lies whole inside a tar."""

    tar: Place
    name: str
    offset: int
    num_bytes: int
    arrays: tuple[int, int] | None = None
    """Offset and bytes of the `.npz` of the same stem in the tar, if there is one."""

    def __str__(self) -> str:
        return f"{self.tar}/{self.name}"


VideoFile = Path | RemotePath | TarMember


def whole_file(file: VideoFile) -> Place:
    """The file, or the tar that it is in."""
    return file.tar if isinstance(file, TarMember) else file


def in_whole(file: VideoFile, whole: Place) -> VideoFile:
    """The same video in another form of its `whole_file`."""
    return replace(file, tar=whole) if isinstance(file, TarMember) else whole


def carrier(file: VideoFile) -> Path:
    """The file on this machine that holds its bytes: of one at a URL, the copy."""
    whole = whole_file(file)
    if isinstance(whole, Path):
        return whole
    assert whole.copy is not None, f"{whole} is read without having been fetched"
    return whole.copy


@contextmanager
def at_hand(file: VideoFile) -> Iterator[VideoFile]:
    """The same with its bytes on this machine during the block; errors as of `RemotePath.copied`."""
    whole = whole_file(file)
    if isinstance(whole, Path):
        yield file
        return
    with whole.copied() as copied:
        yield in_whole(file, copied)


def size_of(file: VideoFile) -> int:
    return file.num_bytes if isinstance(file, TarMember) else carrier(file).stat().st_size


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
    """As JSON for another process of this machine."""
    place = [str(whole_file(file)), str(carrier(file))]
    return [*place, file.name, file.offset, file.num_bytes, file.arrays] if isinstance(file, TarMember) else place


def from_message(sent: Any) -> VideoFile:
    name, path, *member = sent
    whole = Path(path) if name == path else RemotePath(name, "", copy=Path(path))
    if not member:
        return whole
    within, offset, num_bytes, arrays = member
    return TarMember(whole, within, offset, num_bytes, arrays and tuple(arrays))
