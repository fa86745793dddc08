"""Latents that were computed elsewhere become a cache. As with encoding, a killed run is continued by the same calls.

writer = CacheWriter("cache", (8, 16, 16, 1024), spec={"encoder": "mine", "layer": 11}, context="step")
writer.write("train", [ClipInfo("clip-0", label="jump"), ClipInfo("clip-1")], latents)
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flcache.cache.codecs.protocol import ValueRangeError
from flcache.cache.codecs.registry import get_codec
from flcache.cache.format.commit import Failure, is_committed, stage_of
from flcache.cache.format.plan import assign_shards, write_plan
from flcache.cache.format.spec import CacheSpec, create_or_check
from flcache.cache.format.statistics import TRAINING_SPLIT, finalize_statistics
from flcache.cache.options import CacheOptions
from flcache.cache.storage import Location, open_store
from flcache.cache.write.calibration import CODEC_CALIBRATION_CLIPS, Calibrator, is_calibrated
from flcache.cache.write.shard import EncodedClip, ShardWriter, remove_shard_leftovers
from flcache.errors import CacheError, DataError

_RESERVED = {"calibration", "codec", "context", "keep", "layout"}
_END = object()

OnClip = Callable[[Failure | None], None]
"""Called once a clip, with its failure if it has one."""


@dataclass(frozen=True)
class ClipInfo:
    """A clip without its latents."""

    clip_id: str
    """No dot, slash or space; unique in the cache."""
    label: str | None = None
    video: str | None = None
    """Where it comes from; the clip's id if not given."""
    times: Sequence[float] | None = None
    """(T,) seconds of the steps; their numbers if not given."""
    valid_steps: int | None = None
    """Steps, from the first, that are not padding; all if not given."""
    metadata: Mapping[str, Any] | None = None
    """Anything JSON, kept beside the latents."""


class CacheWriter:
    """Writes a cache at `path`, one split at a time, shard by shard.

    Committed shards stay: the same calls again write the missing ones. The same latents give the same bytes.
    """

    def __init__(
        self,
        path: Location,
        shape: Sequence[int],
        *,
        codec: str = CacheOptions.codec,
        spec: Mapping[str, Any] | None = None,
        context: str | Sequence[int] = "full",
        calibration: Mapping[str, Any] | None = None,
        shard_bytes: int = CacheOptions.shard_bytes,
        seed: int | None = None,
        min_cosine: float | None = None,
    ) -> None:
        """`shape` is (T, H, W, D). `spec` is any JSON that says what the latents are; it is part of the fingerprint.

        `context` is the leak rule's: `step` where every step was encoded alone, `full` where each may have seen the
        whole clip, or the last step that each of the T steps has seen. With `seed` the clips are shuffled over the
        shards, as encoding does; without, they stay in the given order. `calibration`, from a `Calibrator`, is for a
        codec that needs one and latents that cannot be indexed. `min_cosine` is the least cosine of a stored vector
        with the given one.
        """
        self._store = open_store(path)
        self._hard = _hard_fields(shape, codec, spec or {}, context)
        self._calibration, self._min_cosine = calibration, min_cosine
        self._shard_bytes, self._seed = shard_bytes, seed

    def write(
        self,
        split: str,
        clips: Sequence[ClipInfo | str],
        latents: Any,
        on_clip: OnClip = lambda failure: None,
    ) -> list[Failure]:
        """Write what is missing of `split`; returns the clips that could not be stored now, and why.

        `latents` gives (T, H, W, D), numpy or torch, of each of the `clips`: by `latents[i]`, or, if it cannot be
        indexed, one after the other. A DataError that it raises for a clip is a failure of that clip. Raises
        SpecMismatch where the cache holds latents of another spec, CacheError where the clips are others than before.
        """
        infos = [clip if isinstance(clip, ClipInfo) else ClipInfo(clip) for clip in clips]
        self._check(split, infos, latents)
        spec = self._open(split, latents, len(infos))
        plan = write_plan(self._store, self._plan(split, infos, spec))
        numbers = {info.clip_id: number for number, info in enumerate(infos)}
        supply = _Supply(latents)
        failures = []
        for _, rows in plan[plan["split"] == split].groupby("shard"):
            shard, wanted = int(rows["shard"].iloc[0]), [numbers[clip_id] for clip_id in rows["clip_id"]]
            if is_committed(self._store, split, shard):
                supply.skip(len(wanted))
                continue
            with ShardWriter(self._store, split, shard, spec, min_cosine=self._min_cosine) as writer:
                if writer.committed:  # by the other writer, whose lock this one waited for
                    supply.skip(len(wanted))
                    continue
                failures += _fill(writer, [infos[number] for number in wanted], wanted, supply, on_clip)
                writer.commit()
        supply.finish()
        remove_shard_leftovers(self._store)
        finalize_statistics(self._store)
        return failures

    def _check(self, split: str, infos: list[ClipInfo], latents: Any) -> None:
        if hasattr(latents, "__len__") and len(latents) != len(infos):
            raise CacheError(f"{self._store}: {len(latents)} latents for {len(infos)} {split} clips")
        if self._seed is not None and not _is_indexable(latents):
            raise CacheError(f"{self._store}: latents that cannot be indexed stay in their order; leave out seed")

    def _open(self, split: str, latents: Any, num_clips: int) -> CacheSpec:
        soft = {"writer": "CacheWriter", "versions": {"flcache": importlib.metadata.version("flcache")}}
        calibrate = partial(self._calibrate, split, latents, num_clips) if is_calibrated(self._hard) else None
        return create_or_check(self._store, self._hard, soft, calibrate)[0]

    def _calibrate(self, split: str, latents: Any, num_clips: int) -> Mapping[str, Any]:
        """From clips evenly spread over the training split."""
        if self._calibration is not None:
            return self._calibration
        if split != TRAINING_SPLIT or not _is_indexable(latents):
            raise CacheError(
                f'{self._store}: {self._hard["codec"]} is calibrated on training latents: write "{TRAINING_SPLIT}" '
                "first, from latents that can be indexed, or pass calibration="
            )
        calibrator, supply = Calibrator(self._hard), _Supply(latents)
        wanted = CODEC_CALIBRATION_CLIPS
        for number in sorted({index * num_clips // wanted for index in range(wanted)}):
            found = supply.take(number)
            if not isinstance(found, DataError):
                calibrator.add(found, len(found))
        return calibrator.fields()

    def _plan(self, split: str, infos: list[ClipInfo], spec: CacheSpec) -> pd.DataFrame:
        ids, videos = [info.clip_id for info in infos], [info.video or info.clip_id for info in infos]
        labels = pd.Series([info.label for info in infos], dtype=object)
        columns = {"clip_id": ids, "video": videos, "video_id": videos, "label": labels, "start_s": 0.0}
        table = pd.DataFrame(columns | {"timestamps": pd.Series([None] * len(ids), dtype=object)})
        clip_bytes = spec.codec.clip_bytes(spec.latent_shape)
        sizes = {"clip_bytes": clip_bytes, "shard_bytes": self._shard_bytes, "seed": self._seed or 0}
        plan = assign_shards(table, split, **sizes, by_video=False)
        # Without a seed, the same shards are filled in the given order.
        return plan if self._seed is not None else plan.assign(**{str(name): table[name] for name in table})


class _Supply:
    """Latents by number, or one after the other if they cannot be indexed."""

    def __init__(self, latents: Any) -> None:
        self._latents = latents
        self._iterator: Iterator[Any] | None = None if _is_indexable(latents) else iter(latents)

    def take(self, number: int) -> NDArray[np.float32] | DataError:
        """The latents of clip `number`, float32; if they cannot be indexed, it must be the next clip."""
        try:
            item = self._latents[number] if self._iterator is None else next(self._iterator, _END)
        except DataError as error:
            return error
        if item is _END:
            raise CacheError(f"the latents ended at clip number {number}; give one for each clip")
        array = item.detach().float().cpu().numpy() if hasattr(item, "detach") else item  # numpy lacks bfloat16
        return np.ascontiguousarray(array, dtype=np.float32)

    def skip(self, count: int) -> None:
        """Leave out the next `count`."""
        if self._iterator is not None:
            list(islice(self._iterator, count))

    def finish(self) -> None:
        """Raises CacheError if there are more than were asked for."""
        if self._iterator is not None and next(self._iterator, _END) is not _END:
            raise CacheError("there are more latents than clips; give one for each clip")


def _fill(
    writer: ShardWriter, infos: Sequence[ClipInfo], numbers: Sequence[int], supply: _Supply, on_clip: OnClip
) -> list[Failure]:
    """Write the clips of a shard in slot order; returns those that failed."""
    failures = []
    for slot, (info, number) in enumerate(zip(infos, numbers, strict=True)):
        failure = _store(writer, info, slot, supply.take(number))
        if failure:
            writer.fail(failure)
            failures.append(failure)
        on_clip(failure)
    return failures


def _store(writer: ShardWriter, info: ClipInfo, slot: int, latents: NDArray[np.float32] | DataError) -> Failure | None:
    video = info.video or info.clip_id
    if isinstance(latents, DataError):
        return Failure(info.clip_id, slot, video, "read", latents.reason, str(latents), latents.attempts)
    clip = EncodedClip(
        clip_id=info.clip_id,
        slot=slot,
        latents=latents,
        times=list(range(len(latents))) if info.times is None else info.times,
        timestamps=[],
        mask=[],
        valid_steps=len(latents) if info.valid_steps is None else info.valid_steps,
        label=info.label,
        video=video,
        decoder="elsewhere",
        metadata=info.metadata,
    )
    try:
        writer.add(clip)
    except ValueRangeError as error:
        return Failure(info.clip_id, slot, video, stage_of(error.reason), error.reason, str(error), 1)
    return None


def _is_indexable(latents: Any) -> bool:
    return hasattr(latents, "__getitem__")


def _hard_fields(
    shape: Sequence[int], codec: str, spec: Mapping[str, Any], context: str | Sequence[int]
) -> dict[str, Any]:
    get_codec(codec)
    if _RESERVED & set(spec):
        raise CacheError(f"spec: {', '.join(sorted(_RESERVED & set(spec)))}: the writer sets this itself; rename it")
    sizes = [int(size) for size in shape]
    modes = {"step": list(range(sizes[0])), "full": [sizes[0] - 1] * sizes[0]}
    if isinstance(context, str) and context not in modes:
        raise CacheError(f"context {context!r}: it is step, full, or the last step that each step has seen")
    mode, seen_until = (context, modes[context]) if isinstance(context, str) else ("given", [int(s) for s in context])
    return {**spec, "codec": codec, "context": {"mode": mode, "seen_until": seen_until}, "layout": {"shape": sizes}}
