"""The plan on disk: a Parquet file of which only the columns and the rows that are asked for are read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flcache.cache.format.names import PLAN
from flcache.cache.format.spec import read_spec
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
        ("end_s", pa.float64()),
        ("shard", pa.int32()),
        ("slot", pa.int32()),
        ("frames", pa.int32()),
        ("stride", pa.int32()),
        ("short", pa.string()),
    ]
)
COLUMNS = tuple(PLAN_SCHEMA.names)
END = "end_s"
"""Only in plans with a segment that ends before its file; read as null everywhere else."""
RULE_COLUMNS = ("frames", "stride", "short")
"""Fields of the clip rule that decoding needs; null for imported latents, absent from older plans."""


def read_plan(location: Location) -> pd.DataFrame:
    """The whole plan, by split, shard and slot; missing values are None. Raises CacheError if there is no plan.

    `RULE_COLUMNS` that an older plan lacks come from the clip rule in its spec.
    """
    store = open_store(location)
    table = read_columns(store, COLUMNS)
    plan: pd.DataFrame = table.to_pandas()
    for name in ("label", END, *RULE_COLUMNS):
        if name in plan:
            plan[name] = pd.Series(table[name].to_pylist(), dtype=object)
    if absent := [name for name in RULE_COLUMNS if name not in plan]:
        rule = _rule_of_the_spec(store, absent)
        plan = plan.assign(**{name: pd.Series([value] * len(plan), dtype=object) for name, value in rule.items()})
    return plan


def _rule_of_the_spec(store: Store, names: Iterable[str]) -> dict[str, Any]:
    found = read_spec(store).hard.get("clip")
    rule = found if isinstance(found, dict) else {}
    return {name: rule.get(name) for name in names}


class PlanTable:
    """The plan of a cache as Arrow columns, each read on first use: no Python object per clip."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._columns: dict[str, Any] = {}
        self._group: tuple[int, Any] | None = None
        """The row group that was read last, and its number."""

    def value(self, column: str, row: int) -> Any:
        return self.column(column)[row].as_py()

    def records(self, start: int, count: int) -> list[dict[str, Any]]:
        """The `count` rows from `start` on as plain values. `RULE_COLUMNS` that an older plan lacks come from the clip
        rule in its spec. Reads the row groups that hold them, and keeps the last one."""
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            row = start + len(rows)
            group = bisect_right(self._group_ends, row)
            if group == len(self._group_ends):
                raise IndexError(f"row {row} of {self._group_ends[-1:]}")
            if self._group is None or self._group[0] != group:
                self._group = group, read_columns(self._store, COLUMNS, group)
            table = self._group[1]
            rows += table.slice(row - self._group_ends[group] + len(table), count - len(rows)).to_pylist()
        return [{**self._rule, **row} for row in rows]

    @cached_property
    def _group_ends(self) -> list[int]:
        with plan_file(self._store) as plan:
            return list(accumulate(plan.metadata.row_group(group).num_rows for group in range(plan.num_row_groups)))

    @cached_property
    def _rule(self) -> dict[str, Any]:
        with plan_file(self._store) as plan:
            absent = [name for name in RULE_COLUMNS if name not in plan.schema_arrow.names]
        return _rule_of_the_spec(self._store, absent) if absent else {}

    def values(self, column: str, rows: Sequence[int] | NDArray[np.int64]) -> list[Any]:
        """The values of `column` in these rows."""
        values: list[Any] = self.column(column).take(pa.array(rows, pa.int64())).to_pylist()
        return values

    def column(self, name: str) -> Any:
        """An Arrow array of all rows."""
        if name not in self._columns:
            self._columns[name] = read_columns(self._store, [name])[name].combine_chunks()
        return self._columns[name]

    @cached_property
    def first_rows(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Where in the plan each shard starts and how many clips it has, by split and shard."""
        table = read_columns(self._store, ["split", "shard", "slot"])
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


def _run_starts(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """The rows at which any of the columns changes, the first row included."""
    changed = np.any([np.diff(column, prepend=column[:1] - 1) != 0 for column in columns], axis=0)
    return np.flatnonzero(changed)


class _PlanFile:
    """A stored file with the interface of a Python file, so that Arrow reads only the columns it needs."""

    closed = False

    def __init__(self, file: StoredFile) -> None:
        self._file, self._num_bytes, self._position = file, file.num_bytes, 0

    def read(self, num_bytes: int) -> bytes:
        content = bytearray(max(0, min(num_bytes, self._num_bytes - self._position)))
        self._position += (num_read := self._file.read_into(self._position, memoryview(content)))
        return bytes(content[:num_read])

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._num_bytes)[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position


@contextmanager
def plan_file(store: Store) -> Iterator[Any]:
    """The open Parquet file. Raises CacheError where there is none, DamagedError where the block cannot read it."""
    if not store.exists(PLAN):
        raise CacheError(f'{store}/{PLAN}: no plan; "flcache encode" makes it')
    try:
        with closing(store.open(PLAN)) as file:
            content = pa.PythonFile(_PlanFile(file), mode="r")
            yield pq.ParquetFile(content, page_checksum_verification=True)
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:  # depends on what is damaged
        raise DamagedError(
            f"{store}/{PLAN}: not a readable plan ({str(error).splitlines()[0]}); restore it from a copy"
        ) from error


def read_columns(store: Store, columns: Iterable[str], group: int | None = None) -> Any:
    """These columns of the plan, or of one of its row groups, without the `RULE_COLUMNS` that an older one lacks."""
    with plan_file(store) as plan:
        there = plan.schema_arrow.names
        names = [name for name in columns if name in there or name not in RULE_COLUMNS]
        schema = pa.schema([PLAN_SCHEMA.field(name) for name in names])
        found = plan.read(columns=names) if group is None else plan.read_row_group(group, columns=names)
        if END in names and END not in there:
            found = found.append_column(PLAN_SCHEMA.field(END), pa.nulls(len(found), pa.float64()))
        table = found.select(names).cast(schema)
        table.validate(full=True)
        return table


def num_rows(store: Store) -> int:
    with plan_file(store) as plan:
        return int(plan.metadata.num_rows)
