"""Sealed JSON records: `spec.json` and the commits.

A record is JSON with sorted keys whose last field, `xxh3_64`, is the digest of every byte before it. The same content
always gives the same bytes, and any flipped or missing byte is noticed on reading.
"""

from __future__ import annotations

import json
import types
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import xxhash

from flcache.cache.storage import Store
from flcache.errors import DamagedError

MAX_RECORD_BYTES = 64 * 2**20
"""A larger file is not a record, and is not read."""
_LARGEST = 1e60
"""Above any sum of float32 squares; its fourth power is still finite."""
_WRONG = object()
Parsed = TypeVar("Parsed")


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, ASCII, no NaN. Raises ValueError for what JSON cannot hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def seal(content: dict[str, Any]) -> bytes:
    """The bytes of the record that holds `content`."""
    text = json.dumps(content, sort_keys=True, indent=2, allow_nan=False)
    head = text.removesuffix("\n}").encode()
    return head + _tail(head)


def read_record(store: Store, name: str, *, repair: str) -> dict[str, Any]:
    """The content of the record `name`. Raises DamagedError, ending with `repair`, if it is not whole."""
    return parse_record(store, name, store.read(name, MAX_RECORD_BYTES), repair=repair)


def parse_record(store: Store, name: str, raw: bytes, *, repair: str) -> dict[str, Any]:
    """As `read_record`, from the bytes of the file."""
    head, tail = raw[: -len(_tail(b""))], raw[-len(_tail(b"")) :]
    content = parse_object(raw)
    if tail != _tail(head) or content is None:
        raise DamagedError(f"{store}/{name}: damaged record; {repair}")
    del content["xxh3_64"]
    return content


def parse_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in `raw`, or None if there is none."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def parse_fields(kind: type[Parsed], content: Any) -> Parsed | None:
    """The dataclass `kind` from `content`; None unless that has exactly its fields, each of its type."""
    hints = _type_hints(kind)  # type: ignore[arg-type]
    if not isinstance(content, dict) or content.keys() != hints.keys():
        return None
    values = {name: _parse(hint, content[name]) for name, hint in hints.items()}
    return None if _WRONG in values.values() else kind(**values)


_type_hints = cache(get_type_hints)


def _parse(hint: Any, value: Any) -> Any:
    """`value` as the type `hint`; `_WRONG` if it is none. Whole numbers fit into 64 bits, and none is below zero."""
    if hint is str:
        right = type(value) is str
    elif hint is int:
        right = type(value) is int and 0 <= value < 2**63
    elif hint is float:
        right = type(value) in (int, float) and abs(value) < _LARGEST
    elif isinstance(hint, types.UnionType):
        return value if value is None else _parse(get_args(hint)[0], value)
    elif get_origin(hint) is dict:
        right = isinstance(value, dict) and _WRONG not in [_parse(int, count) for count in value.values()]
    else:
        found = parse_fields(hint, value)
        return _WRONG if found is None else found
    return value if right else _WRONG


def _tail(head: bytes) -> bytes:
    return b',\n  "xxh3_64": "%s"\n}\n' % xxhash.xxh3_64_hexdigest(head).encode()
