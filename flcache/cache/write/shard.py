"""Writing one shard: a tar and its idx, streamed clip by clip, and the commit that makes them exist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flcache.cache.codecs.fidelity import Fidelity, merge
from flcache.cache.codecs.protocol import cast
from flcache.cache.format.commit import (
    Commit,
    Failure,
    committed_shards,
    failures_bytes,
    read_commit,
    write_commit,
)
from flcache.cache.format.index import PADDED, index_bytes, row_dtype
from flcache.cache.format.names import CHANNELS_MEMBER, FINGERPRINT_MEMBER, parse_shard_name, retried_files, shard_files
from flcache.cache.format.plan import check_clip_ids
from flcache.cache.format.record import canonical_json
from flcache.cache.format.spec import CacheSpec
from flcache.cache.format.statistics import ChannelSums
from flcache.cache.format.tar import TarStream
from flcache.cache.storage import Location, open_store
from flcache.cache.write.prepared import PreparedClip, naming, prepare
from flcache.errors import CacheError


@dataclass(frozen=True)
class EncodedClip:
    """One clip on its way into a shard."""

    clip_id: str
    slot: int
    latents: NDArray[np.float32] | PreparedClip
    """(T, H, W, D) as the encoder gave them, or prepared already."""
    times: Sequence[float]
    """(T,) seconds of the steps, from the clip's first frame."""
    timestamps: Sequence[float]
    """(F,) seconds in the video of the frames that were decoded."""
    mask: Sequence[bool]
    """(F,) True where a frame is real, False where it is padding."""
    valid_steps: int
    """Steps, from the first, that are not made of padding only."""
    label: str | None
    video: str
    decoder: str
    metadata: Mapping[str, Any] | None = None
    """Anything else to keep in the clip's JSON."""
    arrays: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """(T, A) each, those of the spec."""


class ShardBusy(CacheError):
    """Another process, or another thread of this one, is writing the shard."""


class ShardWriter:
    """Writes shard `shard` of `split` to the cache at `location`; nothing of it exists until `commit`.

    A context manager: entering it waits until no other writes the shard, leaving it without `commit` discards
    everything. Clips and failures come in slot order; memory is one clip. Every failed write is a CacheError that says
    what to do.
    """

    def __init__(
        self,
        location: Location,
        split: str,
        shard: int,
        spec: CacheSpec,
        *,
        min_cosine: float | None = None,
        wait: bool = True,
        retried: bool = False,
    ) -> None:
        """`min_cosine` is the least cosine of a stored latent vector with the original. With `wait=False` entering
        raises ShardBusy where another writes the shard. A `retried` shard is written beside the committed one."""
        self._store, self._split, self._shard, self._spec = open_store(location), split, shard, spec
        self._min_cosine, self._wait = min_cosine, wait
        self._files = retried_files(split, shard) if retried else shard_files(split, shard)
        self._lock = shard_files(split, shard).tar
        self._rows: list[tuple[Any, ...]] = []
        self._failures: list[Failure] = []
        self._decoders: Counter[str] = Counter()
        self._sums = ChannelSums(spec.latent_shape[-1])
        self._fidelities: list[Fidelity] = []
        self._keep_fidelities: list[Fidelity] = []
        self._next_slot = 0

    def __enter__(self) -> ShardWriter:
        with ExitStack() as undo:
            if not undo.enter_context(self._store.lock(self._lock, wait=self._wait)):
                raise ShardBusy(f"{self._store}/{self._lock}: another run is writing it; let it finish")
            self._new_tar = self._store.create(self._files.tar)
            undo.callback(self._new_tar.discard)
            self._tar = TarStream(self._new_tar)
            self._tar.add(FINGERPRINT_MEMBER, self._spec.fingerprint.encode())
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @property
    def committed(self) -> Commit | None:
        """The commit of the shard, if it has one by now, by this writer or another."""
        if not self._store.exists(self._files.commit):
            return None
        return read_commit(self._store, self._split, self._shard, file=self._files.commit)

    def add(self, clip: EncodedClip) -> None:
        """Store a clip. Raises, with nothing written, ValueRangeError for values that the codec cannot hold, and
        CacheError for a stored vector below `min_cosine`."""
        self._check(clip)
        prepared = self._prepared(clip)
        self._check_cosine(clip, prepared.fidelity)
        self._take_slot(clip.slot)
        payloads = [*prepared.payloads, *(np.ascontiguousarray(clip.arrays[name]) for name in self._spec.arrays)]
        offsets = self._write_members(clip.clip_id, self._metadata(clip), payloads)
        self._rows.append(self._row(clip, offsets, payloads))
        self._decoders[clip.decoder] += 1
        self._sums.add_steps(prepared.sums, positions=prod(self._spec.latent_shape[1:-1]))
        self._fidelities.append(prepared.fidelity)
        if prepared.keep_fidelity:
            self._keep_fidelities.append(prepared.keep_fidelity)

    def add_stored(
        self, clip_id: str, row: Any, metadata: bytes, payloads: Sequence[NDArray[Any]], decoder: str
    ) -> None:
        """Store a clip as it is stored already: `row` is that of its idx, `metadata` the content of its JSON."""
        self._take_slot(int(row["slot"]))
        places = zip(self._write_members(clip_id, metadata, payloads), row["payloads"], strict=True)
        numbers = [int(row[name]) for name in ("slot", "flags", "valid_steps", "zero")]
        self._rows.append(
            (*numbers, row["times"].tolist(), [(offset, place["bytes"], place["xxh3_64"]) for offset, place in places])
        )
        self._decoders[decoder] += 1
        stored = cast(self._spec.decode(payloads), np.dtype(np.float32))
        self._sums.add(stored[: int(row["valid_steps"])])

    def add_fidelity(self, fidelity: Fidelity | None, keep_fidelity: Fidelity | None) -> None:
        """Count what was measured of clips that are added as they are stored."""
        self._fidelities += [fidelity] if fidelity else []
        self._keep_fidelities += [keep_fidelity] if keep_fidelity else []

    def fail(self, failure: Failure) -> None:
        """Record a clip that is left out."""
        self._take_slot(failure.slot)
        self._failures.append(failure)

    def commit(self) -> Commit:
        """Publish everything, the commit last. If another run has committed the shard, its commit stays."""
        if standing := self.committed:
            return standing
        self._tar.add(CHANNELS_MEMBER, self._sums.sums.astype("<f8").tobytes())
        tar_digest = self._tar.finish()
        rows = np.array(self._rows, dtype=row_dtype(self._spec.latent_shape[0], len(self._spec.payloads)))
        index, failures = index_bytes(rows), failures_bytes(self._failures)
        self._new_tar.publish()
        self._store.write(self._files.idx, index)
        if failures:
            self._store.write(self._files.failures, failures)
        else:  # a killed run may have left one
            self._store.remove_leftovers(self._files.failures)
            self._store.remove(self._files.failures)
        commit = Commit(
            split=self._split,
            shard=self._shard,
            fingerprint=self._spec.fingerprint,
            clips=len(self._rows),
            failed=len(self._failures),
            tar_bytes=self._tar.num_bytes,
            tar_xxh3_64=tar_digest,
            idx_xxh3_64=xxhash.xxh3_64_hexdigest(index),
            failures_xxh3_64=xxhash.xxh3_64_hexdigest(failures) if failures else None,
            positions=self._sums.positions,
            decoders=dict(self._decoders),
            fidelity=merge(self._fidelities),
            keep_fidelity=merge(self._keep_fidelities),
        )
        written = write_commit(self._store, commit, file=self._files.commit)
        return commit if written else self.committed or commit

    def _prepared(self, clip: EncodedClip) -> PreparedClip:
        if isinstance(clip.latents, PreparedClip):
            return clip.latents
        with naming(clip.clip_id):
            return prepare(self._spec, clip.latents, clip.valid_steps)

    def _check_cosine(self, clip: EncodedClip, fidelity: Fidelity) -> None:
        if self._min_cosine is not None and fidelity.min_cosine < self._min_cosine:
            raise CacheError(
                f"{self._store}/{self._files.tar}: clip {clip.clip_id}: a latent vector stored as "
                f"{self._spec.codec.name} has cosine {fidelity.min_cosine:.6f} with what it is made from, and "
                f'cache.min_cosine={self._min_cosine:g}; choose a finer "cache.codec", or lower the floor'
            )

    def _write_members(self, clip_id: str, metadata: bytes, payloads: Sequence[NDArray[Any]]) -> list[int]:
        """Where in the tar each payload starts."""
        self._tar.add(f"{clip_id}.json", metadata)
        return [
            self._tar.add_array(f"{clip_id}.{layout.name}.npy", payload)
            for layout, payload in zip(self._spec.payloads, payloads, strict=True)
        ]

    def _check(self, clip: EncodedClip) -> None:
        T = self._spec.latent_shape[0]
        if len(clip.times) != T or not 0 <= clip.valid_steps <= T:
            raise CacheError(f"clip {clip.clip_id}: {len(clip.times)} times and {clip.valid_steps} valid of {T} steps")
        if len(clip.timestamps) != len(clip.mask):
            raise CacheError(f"clip {clip.clip_id}: {len(clip.timestamps)} timestamps, {len(clip.mask)} in the mask")
        found = {name: (array.dtype.str, array.shape) for name, array in clip.arrays.items()}
        if found != {name: ("<f4", shape) for name, shape in self._spec.arrays.items()}:
            raise CacheError(f"clip {clip.clip_id}: arrays {found}, the spec says float32 {self._spec.arrays}")
        check_clip_ids([clip.clip_id])

    def _take_slot(self, slot: int) -> None:
        if slot < self._next_slot:
            place = f"{self._store}/{self._files.tar}"
            raise CacheError(f"{place}: slot {slot} comes after slot {self._next_slot - 1}; sort the clips")
        self._next_slot = slot + 1

    def _metadata(self, clip: EncodedClip) -> bytes:
        content: dict[str, Any] = {
            "clip_id": clip.clip_id,
            "video": clip.video,
            "label": clip.label,
            "split": self._split,
            "shape": list(self._spec.latent_shape),
            "dtype": self._spec.codec.name,
            "timestamps": [float(second) for second in clip.timestamps],
            "mask": [bool(real) for real in clip.mask],
            "times": [float(second) for second in clip.times],
            "valid_steps": int(clip.valid_steps),
            "seen_until": list(self._spec.seen_until),
            "decoder": clip.decoder,
        }
        if clip.metadata is not None:
            content["metadata"] = dict(clip.metadata)
        return canonical_json(content).encode()

    def _row(self, clip: EncodedClip, offsets: list[int], payloads: list[NDArray[Any]]) -> tuple[Any, ...]:
        flags = PADDED if clip.valid_steps < len(clip.times) else 0
        places = [
            (offset, payload.nbytes, xxhash.xxh3_64_intdigest(payload.data))
            for offset, payload in zip(offsets, payloads, strict=True)
        ]
        return clip.slot, flags, clip.valid_steps, 0, list(clip.times), places


def remove_shard_leftovers(location: Location) -> None:
    """Delete the temporary files that killed runs left of shards that are committed now."""
    store = open_store(location)
    names = {file.rpartition("/")[2].lstrip(".").partition(".")[0] for file in store.unpublished()}
    left = {parse_shard_name(name) for name in names}
    for split, shard in set(committed_shards(store)) & left if left else ():
        _, *files = shard_files(split, shard)
        for file in files:
            store.remove_leftovers(file)
