"""The plan: the table of all clips, in shard order, fixed before any encoding.

Shard and slot of a clip are a pure function of the clips, the split, the seed and the shard size. Neither the order of
rows nor a random generator matters, so they are the same on every machine. For every split the file says what its clips
were planned from: a plan that fits need not be made again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from flcache.cache.format.names import PLAN, shard_name
from flcache.cache.format.plan_table import (
    COLUMNS,
    END,
    PLAN_SCHEMA,
    RULE_COLUMNS,
    num_rows,
    plan_file,
    read_columns,
    read_plan,
)
from flcache.cache.format.record import canonical_json, parse_object
from flcache.cache.format.tar import MAX_NAME_BYTES
from flcache.cache.storage import Location, Store, open_store
from flcache.errors import CacheError

_SOURCES = b"flcache.sources"
"""Key of the file's metadata: JSON, by split."""
_GROUP_ROWS = 2**16
"""Rows that are read to make the task of one shard."""
_CLIP_ID = re.compile(r"[^\x00-\x20./\\\x7f]+")
_LONGEST_SUFFIX = len(".latents.npy")


def assign_shards(
    clips: pd.DataFrame, split: str, *, clip_bytes: int, shard_bytes: int, seed: int, by_video: bool = True
) -> pd.DataFrame:
    """The plan of one split: its clips in shard order, with `split`, `shard` and `slot`.

    `clips` has clip_id, video, video_id, label, start_s and timestamps (a list of seconds, or None), and
    `RULE_COLUMNS` if they are decoded. Videos are shuffled once, each with its clips in the order of time; without
    `by_video`, as in earlier plans, clips are. A shard holds as many clips as fit in `shard_bytes`, at least one.
    Raises CacheError for ids a tar cannot hold.
    """
    shard_name(split, 0)
    check_clip_ids(clips["clip_id"])
    ids = clips["clip_id"].to_numpy(dtype=str)
    keys = np.array([xxhash.xxh3_64_intdigest(f"{seed}/{split}/{clip_id}".encode()) for clip_id in ids], np.uint64)
    repeated = by_video and clips["video_id"].duplicated().any()
    order = _videos_in_order(clips, ids, keys) if repeated else np.lexsort([ids, keys])
    plan = clips.assign(**{name: None for name in (END, *RULE_COLUMNS) if name not in clips})
    plan = plan.iloc[order].reset_index(drop=True)
    clips_per_shard = max(1, shard_bytes // clip_bytes)
    position = np.arange(len(plan))
    return plan.assign(split=split, shard=position // clips_per_shard, slot=position % clips_per_shard)[list(COLUMNS)]


def _videos_in_order(clips: pd.DataFrame, ids: NDArray[np.str_], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Rows sorted by the key of their video, which is that of its first clip, and by time."""
    in_time = np.lexsort([ids, np.char.str_len(ids), clips["start_s"].to_numpy(dtype=np.float64)])
    videos, _ = pd.factorize(clips["video_id"])
    first = np.zeros(videos.max() + 1, dtype=np.int64)
    first[videos[in_time[::-1]]] = in_time[::-1]  # of several values for one place, the last one stays
    time = np.argsort(in_time)
    found: NDArray[np.int64] = np.lexsort([time, ids[first][videos], keys[first][videos]])
    return found


def check_clip_ids(clip_ids: Iterable[str]) -> None:
    """Raises CacheError unless every id is unique and can name the members of a tar."""
    seen: set[str] = set()
    for clip_id in clip_ids:
        if not _CLIP_ID.fullmatch(clip_id):
            raise CacheError(f"clip {clip_id!r}: a clip id holds no dot, slash, backslash or space; rename the video")
        if len(clip_id.encode()) + _LONGEST_SUFFIX > MAX_NAME_BYTES:
            longest = MAX_NAME_BYTES - _LONGEST_SUFFIX
            raise CacheError(f"clip {clip_id}: the id is longer than {longest} bytes; shorten the video's name")
        if clip_id in seen:
            raise CacheError(f"clip {clip_id}: the id is there twice; every clip of a cache needs its own")
        seen.add(clip_id)


def write_plan(location: Location, plan: pd.DataFrame) -> pd.DataFrame:
    """`add_to_plan`; returns the whole plan."""
    add_to_plan(location, plan)
    return read_plan(location)


def add_to_plan(
    location: Location,
    plan: pd.DataFrame,
    sources: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    earlier: pd.DataFrame | None = None,
) -> None:
    """Add the splits of `plan` to the plan of the cache, each with its `sources`: any JSON that it follows from.

    A split that is already there must be equal in every column of the plan on disk; an older plan has fewer. It may
    also equal `earlier`, the same clips in the order of an earlier version. Raises CacheError saying what has changed.
    """
    store, fresh = (
        open_store(location),
        _Fresh(_table(plan), sources or {}, None if earlier is None else _table(earlier)),
    )
    if not store.exists(PLAN) or _extended(store, fresh) is not None:
        with store.lock(PLAN):
            _add(store, fresh)
    store.remove_leftovers(PLAN)


def plan_sources(location: Location) -> dict[str, dict[str, Any]]:
    """What each split was planned from; empty where that is not known."""
    store = open_store(location)
    if not store.exists(PLAN):
        return {}
    with plan_file(store) as plan:
        found = parse_object((plan.schema_arrow.metadata or {}).get(_SOURCES, b"{}")) or {}
    return {split: sources for split, sources in found.items() if isinstance(sources, dict)}


@dataclass(frozen=True)
class _Fresh:
    """Splits that are to be in the plan."""

    table: Any
    sources: Mapping[str, Mapping[str, Any]]
    earlier: Any | None


def _add(store: Store, fresh: _Fresh) -> None:
    """Under the lock: write the rows of `fresh` that the plan still lacks, and what they follow from."""
    if not store.exists(PLAN):
        check_clip_ids(fresh.table["clip_id"].to_pylist())
        if store.write_new(PLAN, _content(_with_sources(fresh.table, fresh.sources))):
            return
    table = _extended(store, fresh)  # the plan may exist by now: not every store has locks
    if table is None:
        return
    try:
        store.write(PLAN, _content(table))
    except CacheError:
        if len(table) > num_rows(store):
            raise  # else the plan is whole without its sources, in a folder that nobody may write to


def _extended(store: Store, fresh: _Fresh) -> Any | None:
    """The plan on disk with the splits of `fresh` and their sources, None if it has them; CacheError if one differs."""
    found = read_columns(store, COLUMNS)
    tables = [found]
    for split in fresh.table["split"].unique().to_pylist():
        old, new = (_split_of(table, split, found) for table in (found, fresh.table))
        if not len(old):
            tables.append(new)
        elif not old.equals(new) and (fresh.earlier is None or not old.equals(_split_of(fresh.earlier, split, found))):
            raise CacheError(
                f"{store}: the {split} clips are not those this cache was planned for: {_change(old, new)}; "
                "go back to the annotation file and settings it was made with, or choose another cache.dir"
            )
    recorded = plan_sources(store)
    sources = {**recorded, **fresh.sources}
    if len(tables) == 1 and sources == recorded:
        return None
    table = pa.concat_tables(tables).sort_by(_SORTING)
    check_clip_ids(table["clip_id"].to_pylist())
    return _with_sources(table, sources)


def _split_of(table: Any, split: str, like: Any) -> Any:
    """The rows of a split, with the columns of the table `like`."""
    return table.select(like.column_names).filter(pa.compute.equal(table["split"], split))


def _with_sources(table: Any, sources: Mapping[str, Mapping[str, Any]]) -> Any:
    return table.replace_schema_metadata({_SOURCES: canonical_json(dict(sources))} if sources else None)


_SORTING = [("split", "ascending"), ("shard", "ascending"), ("slot", "ascending")]


def _table(plan: pd.DataFrame) -> Any:
    labels = [None if pd.isna(label) else str(label) for label in plan["label"]]
    timestamps = [None if np.ndim(seconds) == 0 else seconds for seconds in plan["timestamps"]]
    columns = {name: plan[name] for name in COLUMNS} | {
        "label": pd.Series(labels, plan.index, dtype=object),
        "timestamps": pd.Series(timestamps, plan.index, dtype=object),
    }
    table = pa.Table.from_pandas(pd.DataFrame(columns), schema=PLAN_SCHEMA, preserve_index=False)
    return table.replace_schema_metadata().sort_by(_SORTING)


def _content(table: Any) -> bytes:
    buffer = BytesIO()
    if table[END].null_count == len(table):
        table = table.drop_columns([END])
    options = {"row_group_size": _GROUP_ROWS, "write_page_checksum": True}
    pq.write_table(table, buffer, compression="zstd", version="2.6", **options)
    return buffer.getvalue()


def _change(found: Any, fresh: Any) -> str:
    old, new = set(found["clip_id"].to_pylist()), set(fresh["clip_id"].to_pylist())
    changes = [
        f"{len(ids)} clips {verb}, such as {min(ids)}"
        for ids, verb in ((new - old, "added"), (old - new, "removed"))
        if ids
    ]
    if changes:
        return " and ".join(changes)
    by_id = [("clip_id", "ascending")]
    old_rows, new_rows = found.sort_by(by_id).to_pylist(), fresh.sort_by(by_id).to_pylist()
    before, after = next((a, b) for a, b in zip(old_rows, new_rows, strict=True) if a != b)
    field = next(name for name in before if before[name] != after[name])
    if field in ("shard", "slot"):
        return "the same clips are in other shards (cache.shard_bytes or cache.seed has changed)"
    return f"clip {before['clip_id']} had {field} {before[field]!r}, now {after[field]!r}"
