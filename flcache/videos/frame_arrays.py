"""Arrays that belong to the frames of a video: `<stem>.npz` beside it, with one row for each frame on display.

`actions` is what is done from a frame to the next. A clip skips frames, so the action of one of its frames is the mean
over all rows from that frame up to the clip's next one; where no frame is skipped it is the frame's own row. Any other
array, such as `states`, is taken at the clip's frames alone.

N frames of a video, F frames of a clip, A numbers a row: what a row holds beyond one axis is laid flat.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from flcache.errors import DecodeError
from flcache.videos.remote_path import RemotePath
from flcache.videos.video_file import TarMember, VideoFile, open_bytes

ACTIONS = "actions"
MOST_NUMBERS = 2**16
"""Of a row."""


def read_rows(video: VideoFile, widths: Mapping[str, int], num_frames: int) -> dict[str, NDArray[np.float32]]:
    """The arrays of these names, (N, A) each. Raises DecodeError unless they are there, finite, and of these widths."""
    return {name: _read(video, name, (num_frames, width)) for name, width in widths.items()}


def _read(video: VideoFile, name: str, wanted: tuple[int, int]) -> NDArray[np.float32]:
    place, (num_frames, width) = f"{_shown(video)}: {name}", wanted
    with _opened(video, name) as (shape, member):
        if shape[0] != num_frames:
            raise _wrong(f"{place} has {shape[0]} rows, the video {num_frames} frames on display; write one a frame")
        if (numbers := prod(shape[1:])) != width:
            raise _wrong(f"{place} has {numbers} numbers a row, other videos have {width}; write as many")
        found = npy.read_array(member, allow_pickle=False)
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(found, dtype=np.float32).reshape(wanted)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise _wrong(f"{place}: row {int(finite.argmin())} is not finite in float32; mend its values")
    return rows


def row_width(video: VideoFile, name: str) -> int:
    """A, from the header alone. Raises DecodeError unless the array is there and holds numbers."""
    with _opened(video, name) as (shape, _):
        return prod(shape[1:])


def sampled(rows: Mapping[str, NDArray[np.float32]], indices: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """The rows of a clip's frames `indices` (F,), (F, A) each; of `actions` their means up to the next frame.

    The last frame counts as followed after as many frames as it follows the one before it.
    """
    return {name: _means(each, indices) if name == ACTIONS else each[indices] for name, each in rows.items()}


def _means(rows: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    last_gap = starts[-1] - starts[-2] if len(starts) > 1 else 1
    stops = np.maximum([*starts[1:], starts[-1] + last_gap], starts + 1)  # a frame that is shown twice has its own row
    pairs = zip(starts.tolist(), stops.tolist(), strict=True)
    means = [rows[start:stop].mean(axis=0, dtype=np.float64) for start, stop in pairs]
    return np.array(means, dtype=np.float32).reshape(len(starts), rows.shape[1])


@contextmanager
def _opened(video: VideoFile, name: str) -> Iterator[tuple[tuple[int, ...], IO[bytes]]]:
    """The shape of the array, which holds numbers, and its `.npy`. Whatever is wrong with the file is a DecodeError."""
    place = _shown(video)
    try:
        with open_bytes(_beside(video)) as stream, zipfile.ZipFile(stream) as archive:
            if f"{name}.npy" not in archive.namelist():
                raise DecodeError(f"{place}: holds no array {name}; save it with numpy.savez", reason="no arrays")
            with archive.open(f"{name}.npy") as member:
                shape, dtype = _header(member)
            if not shape or dtype.kind not in "biuf" or not 1 <= prod(shape[1:]) <= MOST_NUMBERS:
                words = f"rows of 1 to {MOST_NUMBERS} real numbers"
                raise _wrong(f"{place}: {name} is {dtype} {list(shape)}, not {words}")
            with archive.open(f"{name}.npy") as member:
                yield shape, member
    except FileNotFoundError:
        raise DecodeError(f"{place}: no such file; dataset.arrays={name} wants it", reason="no arrays") from None
    except OSError as error:
        raise DecodeError(f"{place}: cannot be read: {error.strerror}", reason="not readable") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, NotImplementedError) as error:
        raise _wrong(f"{place}: damaged, or no file of numpy.savez ({error})") from None


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    read = npy.read_array_header_1_0 if npy.read_magic(member) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype


def _beside(video: VideoFile) -> VideoFile:
    """The `.npz` of a video."""
    if isinstance(video, Path):
        return video.with_suffix(".npz")
    if isinstance(video, RemotePath):
        words = "files beside videos are not fetched from a bucket; put both into tars there, or copy them here"
        raise DecodeError(f"{_shown(video)}: {words}", reason="no arrays")
    if video.arrays is None:
        raise FileNotFoundError
    return TarMember(video.tar, str(PurePosixPath(video.name).with_suffix(".npz")), *video.arrays)


def _shown(video: VideoFile) -> str:
    return f"{str(video).removesuffix(PurePosixPath(str(video)).suffix)}.npz"


def _wrong(words: str) -> DecodeError:
    return DecodeError(words, reason="wrong arrays")
