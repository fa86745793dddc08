"""A tree of frozen dataclasses as a schema: which keys there are, and which values each of them takes.

A field's type says what is allowed: `Literal` lists words, `Annotated[int, Bound(...)]` limits a number, a nested
dataclass is a section, `dict[str, Any]` takes any keys. Metadata of a field: `key` replaces the field's name as the
key, `inline` puts the keys of a nested dataclass among those of its parent, `schema=False` makes the field no key.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Collection, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from flcache.bounds import Bound, Formerly, OneOf
from flcache.config.yaml_lines import Entry, Key, Origin, dotted, shown
from flcache.errors import FlcacheError

Section = TypeVar("Section")


def schema_keys(section: type, above: Key = ()) -> dict[Key, Any]:
    """Every key below a dataclass and its type."""
    hints = get_type_hints(section, include_extras=True)
    keys: dict[Key, Any] = {}
    for name, field in _keyed_fields(section):
        hint = hints[field.name]
        if is_dataclass(hint):
            keys |= schema_keys(hint, above if _is_inline(field) else (*above, name))  # type: ignore[arg-type]
        else:
            keys[(*above, name)] = hint
    return keys


def check_keys(entries: Mapping[Key, Entry], known: Mapping[Key, Any]) -> list[str]:
    """One line for every key of `entries` that the schema lacks, with a similar name."""
    sections = {key[:end] for key in known for end in range(1, len(key))}
    problems = []
    for key, entry in entries.items():
        if key in sections and entry.value != {}:
            below = sorted(other[len(key)] for other in known if other[: len(key)] == key)
            problems.append(f"{entry.origin}: {dotted(key)}: expected keys below it: {', '.join(dict.fromkeys(below))}")
        elif key not in sections and _leaf(key, known) is None:
            problems.append(f"{entry.origin}: {dotted(key)}: unknown key{_near(key, known)}")
    return problems


def convert(entries: Mapping[Key, Entry], known: Mapping[Key, Any]) -> tuple[dict[Key, Any], list[str]]:
    """The values in `entries` by schema key, each in the type of the schema; and one line for every wrong value."""
    found: dict[Key, tuple[Any, Origin]] = {}
    for key, entry in entries.items():
        leaf = _leaf(key, known)
        if leaf is not None:
            found[leaf] = _put(found.get(leaf), key[len(leaf) :], entry)
    values, problems = {}, []
    for key, (value, origin) in found.items():
        try:
            values[key] = _converted(value, known[key])
        except _WrongValue:
            problems.append(f"{origin}: {dotted(key)}: expected {_wanted(known[key])}, got {shown(value)}")
    return values, problems


def build(section: type[Section], tree: Mapping[str, Any], problems: list[str]) -> Section:
    """The dataclass from nested values of the right types; keys that `tree` lacks keep their defaults.

    If a dataclass refuses its values, the reason is added to `problems`, and its defaults stand in.
    """
    hints = get_type_hints(section)
    values: dict[str, Any] = {}
    for name, field in _keyed_fields(section):
        if is_dataclass(hints[field.name]):
            below = tree if _is_inline(field) else tree.get(name, {})
            values[field.name] = build(hints[field.name], below, problems)
        elif name in tree:
            values[field.name] = tree[name]
    try:
        return section(**values)
    except FlcacheError as error:
        problems.append(str(error))
        return section()


def as_dict(section: Any) -> dict[str, Any]:
    """The keys of a dataclass and their values, as nested dictionaries: `build` gives the dataclass again."""
    tree: dict[str, Any] = {}
    for name, field in _keyed_fields(type(section)):
        value = getattr(section, field.name)
        below = as_dict(value) if is_dataclass(value) else value
        tree |= below if _is_inline(field) else {name: below}
    return tree


def as_tree(values: Mapping[Key, Any]) -> dict[str, Any]:
    """Flat keys as nested dictionaries."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        branch = tree
        for part in key[:-1]:
            branch = branch.setdefault(part, {})
        branch[key[-1]] = value
    return tree


def _keyed_fields(section: type) -> list[tuple[str, Field[Any]]]:
    return [
        (field.metadata.get("key", field.name), field)
        for field in fields(section)
        if field.metadata.get("schema", True)
    ]


def _is_inline(field: Field[Any]) -> bool:
    return bool(field.metadata.get("inline"))


class _WrongValue(Exception):
    """A value that its type does not allow."""


def _leaf(key: Key, known: Mapping[Key, Any]) -> Key | None:
    """The schema key that is `key`, or the `dict` above it."""
    if key in known:
        return key
    above = (key[:end] for end in range(len(key) - 1, 0, -1))
    return next((leaf for leaf in above if get_origin(known.get(leaf)) is dict), None)


def _near(key: Key, known: Collection[Key]) -> str:
    if key[0] == "inherits" or difflib.get_close_matches(key[0], ["inherits"], cutoff=0.8):
        return ", did you mean inherits? It is a list of files at the top of a file"
    names = {dotted(other): other for other in known}
    if dotted(key) in names:
        return f": write it nested, {key[0].split('.')[0]}: and the rest indented below it"
    ending = [name for name, other in names.items() if other[-1] == key[-1]]
    near = difflib.get_close_matches(dotted(key), names, n=1, cutoff=0.6) or ending
    return f", did you mean {near[0]}?" if near else ""


def _put(found: tuple[Any, Origin] | None, below: Key, entry: Entry) -> tuple[Any, Origin]:
    """`found` with the value of `entry` put in at `below`; the origin of its first part stands for the whole."""
    if not below:
        return entry.value, entry.origin
    tree, origin = found or ({}, entry.origin)
    branch = tree
    for part in below[:-1]:
        branch = branch.setdefault(part, {})
    branch[below[-1]] = entry.value
    return tree, origin


def _converted(value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, arguments)
    if origin is Annotated:
        for then, now in (pair for note in arguments[1:] if isinstance(note, Formerly) for pair in note.pairs):
            if (type(value), value) == (type(then), then):
                return now
        return _bounded(_converted(value, arguments[0]), arguments[1:])
    if origin is tuple:
        return _converted_list(value, arguments)
    if origin is Literal:
        return _bounded(value, [Bound("", lambda word: isinstance(word, str) and word in arguments)])
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and type(value) is float and value.is_integer():
        return int(value)
    return _bounded(value, [Bound("", lambda given: type(given) is (origin or hint))])


def _first_that_fits(value: Any, hints: Collection[Any]) -> Any:
    for hint in hints:
        try:
            return _converted(value, hint)
        except _WrongValue:
            continue
    raise _WrongValue


def _converted_list(value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list) or (hints[-1] is not Ellipsis and len(value) != len(hints)):
        raise _WrongValue
    wanted = [hints[0]] * len(value) if hints[-1] is Ellipsis else hints
    return tuple(_converted(item, hint) for item, hint in zip(value, wanted, strict=True))


def _bounded(value: Any, notes: Collection[Any]) -> Any:
    if not all(note.holds(value) for note in notes if isinstance(note, Bound | OneOf)):
        raise _WrongValue
    return value


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}


def _wanted(hint: Any) -> str:
    """A type in the words of an error."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        says = " and ".join(note.says for note in arguments[1:] if isinstance(note, Bound | OneOf))
        return f"{_wanted(arguments[0])} {says}".rstrip()
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list of {_wanted(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {_wanted(arguments[0])}"
    if origin is dict:
        return "keys and values"
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    return " or ".join(_wanted(argument) for argument in arguments) or _WORDS[hint]
