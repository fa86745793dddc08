"""Sealed JSON records: `spec.json` and the commits.

A record is JSON with sorted keys whose last field, `xxh3_64`, is the digest of every byte before it. The same content
always gives the same bytes, and any flipped or missing byte is noticed on reading.
"""

from __future__ import annotations

import json
from typing import Any

import xxhash

from flcache.cache.storage import Store
from flcache.errors import DamagedError

MAX_RECORD_BYTES = 64 * 2**20
"""A larger file is no record of ours, and is not read."""


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
    raw = store.read(name, MAX_RECORD_BYTES)
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


def _tail(head: bytes) -> bytes:
    return b',\n  "xxh3_64": "%s"\n}\n' % xxhash.xxh3_64_hexdigest(head).encode()
