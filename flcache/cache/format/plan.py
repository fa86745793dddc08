"""The plan: the table of all clips, in shard order, fixed before any encoding.

Shard and slot of a clip are a pure function of the clip ids, the split, the seed and the shard size. Neither the order
of rows nor a random generator matters, so they are the same on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from flcache.cache.format.names import PLAN, shard_name
from flcache.cache.format.spec import read_spec
from flcache.cache.format.tar import MAX_NAME_BYTES
from flcache.cache.storage import Location, Store, StoredFile, open_store
from flcache.errors import CacheError, DamagedError

PLAN_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("video", pa.string()),
        ("video_id", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("start_s", pa.float64()),
        ("timestamps", pa.list_(pa.float64())),
        ("shard", pa.int32()),
        ("slot", pa.int32()),
        ("frames", pa.int32()),
        ("stride", pa.int32()),
        ("short", pa.string()),
    ]
)
COLUMNS = tuple(PLAN_SCHEMA.names)
RULE_COLUMNS = ("frames", "stride", "short")
"""Fields of the clip rule that decoding needs; null for imported latents, absent from older plans."""
_CLIP_ID = re.compile(r"[^\x00-\x20./\\\x7f]+")
_LONGEST_SUFFIX = len(".latents.npy")


def assign_shards(clips: pd.DataFrame, split: str, *, clip_bytes: int, shard_bytes: int, seed: int) -> pd.DataFrame:
    """The plan of one split: its clips in shard order, with `split`, `shard` and `slot`.

    `clips` has clip_id, video, video_id, label, start_s and timestamps (a list of seconds, or None), and `RULE_COLUMNS`
    if they are decoded. Clips are shuffled once; a shard holds as many as fit in `shard_bytes`, at least one. Raises
    CacheError for ids a tar cannot hold.
    """
    shard_name(split, 0)
    check_clip_ids(clips["clip_id"])
    keys = [xxhash.xxh3_64_intdigest(f"{seed}/{split}/{clip_id}".encode()) for clip_id in clips["clip_id"]]
    order = np.lexsort([clips["clip_id"].to_numpy(dtype=str), np.array(keys, dtype=np.uint64)])
    plan = clips.assign(**{name: None for name in RULE_COLUMNS if name not in clips})
    plan = plan.iloc[order].reset_index(drop=True)
    clips_per_shard = max(1, shard_bytes // clip_bytes)
    position = np.arange(len(plan))
    return plan.assign(split=split, shard=position // clips_per_shard, slot=position % clips_per_shard)[list(COLUMNS)]


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
    """Add the splits of `plan` to the plan of the cache; returns the whole plan.

    A split that is already there must be equal in every column of the plan on disk; an older plan has fewer. Raises
    CacheError saying what has changed.
    """
    store, fresh = open_store(location), _table(plan)
    if not store.exists(PLAN) or _extended(store, fresh) is not None:
        with store.lock(PLAN):
            _add(store, fresh)
    store.remove_leftovers(PLAN)
    return read_plan(store)


def _add(store: Store, fresh: Any) -> None:
    """Under the lock: write the rows of `fresh` that the plan still lacks."""
    if not store.exists(PLAN):
        check_clip_ids(fresh["clip_id"].to_pylist())
        if store.write_new(PLAN, _content(fresh)):
            return
    table = _extended(store, fresh)  # the plan may exist by now: not every store has locks
    if table is not None:
        store.write(PLAN, _content(table))


def _extended(store: Store, fresh: Any) -> Any | None:
    """The plan on disk with the splits of `fresh` that it lacks, None if it lacks none; CacheError if one differs."""
    found = _read_table(store, COLUMNS)
    fresh = fresh.select(found.column_names)
    tables = [found]
    for split in fresh["split"].unique().to_pylist():
        old, new = (table.filter(pa.compute.equal(table["split"], split)) for table in (found, fresh))
        if not len(old):
            tables.append(new)
        elif not old.equals(new):
            raise CacheError(
                f"{store}: the {split} clips are not those this cache was planned for: {_change(old, new)}; "
                "go back to the annotation file and settings it was made with, or choose another cache.dir"
            )
    if len(tables) == 1:
        return None
    table = pa.concat_tables(tables).sort_by(_SORTING)
    check_clip_ids(table["clip_id"].to_pylist())
    return table


def read_plan(location: Location) -> pd.DataFrame:
    """The whole plan, by split, shard and slot; missing values are None. Raises CacheError if there is no plan.

    `RULE_COLUMNS` that an older plan lacks come from the clip rule in its spec.
    """
    store = open_store(location)
    table = _read_table(store, COLUMNS)
    plan: pd.DataFrame = table.to_pandas()
    for name in ("label", *RULE_COLUMNS):
        if name in plan:
            plan[name] = pd.Series(table[name].to_pylist(), dtype=object)
    if absent := [name for name in RULE_COLUMNS if name not in plan]:
        found = read_spec(store).hard.get("clip")
        rule = found if isinstance(found, dict) else {}
        plan = plan.assign(**{name: pd.Series([rule.get(name)] * len(plan), dtype=object) for name in absent})
    return plan


class PlanTable:
    """The plan of a cache as Arrow columns, each read on first use: no Python object per clip."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._columns: dict[str, Any] = {}

    def value(self, column: str, row: int) -> Any:
        return self.column(column)[row].as_py()

    def values(self, column: str, rows: Sequence[int] | NDArray[np.int64]) -> list[Any]:
        """The values of `column` in these rows."""
        values: list[Any] = self.column(column).take(pa.array(rows, pa.int64())).to_pylist()
        return values

    def column(self, name: str) -> Any:
        """An Arrow array of all rows."""
        if name not in self._columns:
            self._columns[name] = _read_table(self._store, [name])[name].combine_chunks()
        return self._columns[name]

    @cached_property
    def first_rows(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Where in the plan each shard starts and how many clips it has, by split and shard."""
        table = _read_table(self._store, ["split", "shard", "slot"])
        if any(column.null_count for column in table.columns):
            raise DamagedError(f"{self._store}/{PLAN}: holds clips without a shard; restore it from a copy")
        splits = table["split"].combine_chunks().dictionary_encode()
        codes, shards = splits.indices.to_numpy(), table["shard"].to_numpy()
        starts = _run_starts(codes, shards)
        counts = np.diff(starts, append=len(shards))
        slots = np.arange(len(shards)) - np.repeat(starts, counts)
        if not np.array_equal(slots, table["slot"].to_numpy()):
            raise DamagedError(f"{self._store}/{PLAN}: not in shard order; restore it from a copy")
        names = splits.dictionary.to_pylist()
        keys = zip((names[code] for code in codes[starts].tolist()), shards[starts].tolist(), strict=True)
        return dict(zip(keys, zip(starts.tolist(), counts.tolist(), strict=True), strict=True))


_SORTING = [("split", "ascending"), ("shard", "ascending"), ("slot", "ascending")]


def _run_starts(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """The rows at which any of the columns changes, the first row included."""
    changed = np.any([np.diff(column, prepend=column[:1] - 1) != 0 for column in columns], axis=0)
    return np.flatnonzero(changed)


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
    pq.write_table(table, buffer, compression="zstd", version="2.6")
    return buffer.getvalue()


class _PlanFile:
    """A stored file with the interface of a Python file, so that Arrow reads only the columns it needs."""

    closed = False

    def __init__(self, file: StoredFile, num_bytes: int) -> None:
        self._file, self._num_bytes, self._position = file, num_bytes, 0

    def read(self, num_bytes: int) -> bytes:
        content = bytearray(max(0, min(num_bytes, self._num_bytes - self._position)))
        self._position += (num_read := self._file.read_into(self._position, memoryview(content)))
        return bytes(content[:num_read])

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._num_bytes)[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position


def _read_table(store: Store, columns: Iterable[str]) -> Any:
    """These columns of the plan, without the `RULE_COLUMNS` that an older one lacks."""
    if not store.exists(PLAN):
        raise CacheError(f'{store}/{PLAN}: no plan; "flcache encode" makes it')
    try:
        with closing(store.open(PLAN)) as file:
            plan = pq.ParquetFile(pa.PythonFile(_PlanFile(file, store.size(PLAN) or 0), mode="r"))
            there = plan.schema_arrow.names
            names = [name for name in columns if name in there or name not in RULE_COLUMNS]
            schema = pa.schema([PLAN_SCHEMA.field(name) for name in names])
            table = plan.read(columns=names).select(names).cast(schema)
            table.validate(full=True)
            return table
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:  # depends on what is damaged
        raise DamagedError(
            f"{store}/{PLAN}: not a readable plan ({str(error).splitlines()[0]}); restore it from a copy"
        ) from error


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
