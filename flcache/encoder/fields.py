"""Which fields of a Hugging Face config or processor a spec keeps, as plain JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any


def deciding_fields(
    values: Mapping[str, Any], defaults: Mapping[str, Any], *, always: Collection[str], never: Collection[str]
) -> dict[str, Any]:
    """The fields of `values` that differ from their class's `defaults`, and those named in `always` that are not None;
    without private ones and those named in `never`. So a field that a new library version adds is kept only once it is
    set."""
    kept = {}
    for name in {*values, *defaults}.difference(never):
        value, default = _plain(values.get(name)), _plain(defaults.get(name))
        if value != default or (name in always and value is not None):
            kept[name] = value
    return {name: kept[name] for name in sorted(kept) if not name.startswith("_")}


def _plain(value: Any) -> Any:
    """`value` as JSON holds it, without entries that are None: size objects of transformers list every kind of size."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
