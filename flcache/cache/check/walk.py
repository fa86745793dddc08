"""Every byte of one shard, read once from front to back, against its commit, its idx, its plan and the format.

The idx, the plan and the sizes of the JSON members determine all headers and padding, which are compared byte by byte;
the payloads and the whole tar have digests. Memory is one payload.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flcache.cache.codecs.protocol import PayloadLayout
from flcache.cache.format.commit import Commit, check_size
from flcache.cache.format.index import Rows
from flcache.cache.format.names import CHANNELS_MEMBER, FINGERPRINT_MEMBER
from flcache.cache.format.record import parse_object
from flcache.cache.format.spec import CacheSpec
from flcache.cache.format.tar import BLOCK_BYTES, END_BYTES, member_header, npy_header
from flcache.cache.storage import Store, StoredFile
from flcache.errors import CacheError

Problem = tuple[str | None, str]
"""The clip, None for a member that is no clip's; and what is wrong."""
_FINITE_CHUNK_VALUES = 2**18


@dataclass(frozen=True)
class PlannedClip:
    clip_id: str
    video: str
    label: str | None


def walk_tar(store: Store, commit: Commit, spec: CacheSpec, rows: Rows, clips: list[PlannedClip]) -> Iterator[Problem]:
    """What is wrong with the tar of a shard; `clips` are the planned clips of its `rows`.

    Raises CacheError where it cannot be read or its size is not that of its commit.
    """
    name = commit.files.tar
    check_size(store, name, commit.tar_digest)
    with closing(store.open(name, sequential=True, digest=commit.tar_digest)) as file:
        tar = _Tar(file, commit.tar_bytes)
        named = False
        for problem in _members(tar, commit, spec, rows, clips):
            named = True
            yield problem
        if tar.digest.hexdigest() != commit.tar_xxh3_64 and not named:
            yield None, "not the bytes that were committed"


class _Tar:
    """Reads forward only, and digests all that it reads."""

    def __init__(self, file: StoredFile, num_bytes: int) -> None:
        self._file, self.num_bytes, self.position = file, num_bytes, 0
        self.digest = xxhash.xxh3_64()

    def read_into(self, buffer: memoryview) -> bool:
        """Whether there was enough to fill `buffer`."""
        num_read = self._file.read_into(self.position, buffer)
        self.position += num_read
        self.digest.update(buffer[:num_read])
        return num_read == len(buffer)

    def read_until(self, end: int) -> bytes:
        """What lies before `end` or the end of the file."""
        content = bytearray(min(end, self.num_bytes) - self.position)
        self.read_into(memoryview(content))
        return bytes(content)


def _members(tar: _Tar, commit: Commit, spec: CacheSpec, rows: Rows, clips: list[PlannedClip]) -> Iterator[Problem]:
    layouts = spec.payloads
    buffers = [np.empty(layout.num_bytes, dtype=np.uint8) for layout in layouts]
    before = _member(FINGERPRINT_MEMBER, spec.fingerprint.encode())
    for row, clip in zip(rows, clips, strict=True):
        for number, (layout, buffer) in enumerate(zip(layouts, buffers, strict=True)):
            place = row["payloads"][number]
            start = tar.position
            if int(place["offset"]) < start:
                yield clip.clip_id, "the idx lets its payloads overlap"
                return
            gap = tar.read_until(int(place["offset"]))
            problem = _check_gap(gap, start, before, commit, layout, clip, with_metadata=number == 0)
            if problem:
                yield clip.clip_id, problem
            if not tar.read_into(buffer.data):
                yield clip.clip_id, "the tar ends in the middle of it"
                return
            problem = _check_payload(buffer, int(place["xxh3_64"]), layout)
            if problem:
                yield clip.clip_id, problem
            before = bytes(-layout.num_bytes % BLOCK_BYTES)
    yield from _check_end(tar, before, spec)


def _check_gap(
    gap: bytes,
    start: int,
    before: bytes,
    commit: Commit,
    layout: PayloadLayout,
    clip: PlannedClip,
    *,
    with_metadata: bool,
) -> str | None:
    """What is wrong between a payload and the one before it; None if nothing is."""
    expected = before
    if with_metadata:
        name = f"{clip.clip_id}.json"
        content = json_content(gap[len(before) :])
        if content is None:
            return f"no member {name} where the idx has it"
        metadata = parse_object(content) or {}
        told = [metadata.get(field) for field in ("clip_id", "video", "label", "split")]
        if told != [clip.clip_id, clip.video, clip.label, commit.split]:
            return f"{name} is not about the clip that is planned there"
        expected = before + _member(name, content)
    header_start = start + len(expected)
    values: NDArray[Any] = np.broadcast_to(np.empty((), dtype=layout.dtype), layout.shape)
    npy = npy_header(values, start=header_start + BLOCK_BYTES)
    name = f"{clip.clip_id}.{layout.name}.npy"
    if gap != expected + member_header(name, len(npy) + layout.num_bytes) + npy:
        return f"the headers before {name} are not those of the format, or not where the idx has them"
    return None


def json_content(members: bytes) -> bytes | None:
    """The content of the tar member that `members` starts with; None if its header gives no size or a wrong one."""
    size = members[124:135]  # in octal
    if not re.fullmatch(rb"[0-7]{11}", size):
        return None
    num_bytes = int(size, 8)
    content = members[BLOCK_BYTES : BLOCK_BYTES + num_bytes]
    return content if len(content) == num_bytes else None


def _check_payload(buffer: NDArray[np.uint8], digest: int, layout: PayloadLayout) -> str | None:
    if xxhash.xxh3_64_intdigest(buffer.data) != digest:
        return f"its {layout.name} are not what was written"
    return None if _all_finite(buffer, layout) else f"its {layout.name} are not all finite"


def _check_end(tar: _Tar, before: bytes, spec: CacheSpec) -> Iterator[Problem]:
    num_bytes = 2 * spec.latent_shape[-1] * 8
    end = tar.read_until(tar.num_bytes)
    sums = end[len(before) + BLOCK_BYTES :][:num_bytes]
    if len(sums) < num_bytes or end != before + _member(CHANNELS_MEMBER, sums) + bytes(END_BYTES):
        yield None, "its last member is not the channel sums"
    elif not np.isfinite(np.frombuffer(sums, dtype="<f8")).all():
        yield None, "its channel sums are not finite"


def _member(name: str, content: bytes) -> bytes:
    try:
        header = member_header(name, len(content))
    except CacheError:  # a name that no tar of ours holds
        return b""
    return header + content + bytes(-len(content) % BLOCK_BYTES)


def _all_finite(buffer: NDArray[np.uint8], layout: PayloadLayout) -> bool:
    if layout.not_finite is None:
        return True
    bits = buffer.view(f"<u{layout.dtype.itemsize}")
    mask = bits.dtype.type(layout.not_finite)
    chunks = (bits[start : start + _FINITE_CHUNK_VALUES] for start in range(0, len(bits), _FINITE_CHUNK_VALUES))
    return all(bool(((chunk & mask) < mask).all()) for chunk in chunks)
