"""YAML text as flat keys, each with its value and its line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from flcache.errors import ConfigError

Key = tuple[str, ...]
"""The path of a value in the tree: `("training", "steps")` is written `training.steps`."""

_DEEPEST = 20


@dataclass(frozen=True)
class Origin:
    """Where a value was written."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Entry:
    """A value other than a mapping, and where it was written."""

    value: Any
    origin: Origin


def dotted(key: Key) -> str:
    return ".".join(key)


def shown(value: Any) -> str:
    """`value` as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def read_yaml(text: str, name: str) -> dict[Key, Entry]:
    """Every value of a YAML mapping that is not itself a mapping, and every empty mapping, in the order of the text.

    `name` is the name of the text in origins and errors. Raises ConfigError naming the line: not YAML, or a key twice.
    """
    root = _compose(text, name)
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{name}:{root.start_mark.line + 1}: expected `key: value` lines")
    return _flatten(root, (), name) if root and root.value else {}


def read_value(text: str, key: Key, name: str) -> dict[Key, Entry]:
    """As `read_yaml`, for the value of one `key`, as in `KEY=VALUE`; an empty text is null."""
    node = _compose(text, f'{name}, "{dotted(key)}={text}"')
    entries = _flatten(node, key, name) if node else {key: Entry(None, Origin(name))}
    return {below: Entry(entry.value, Origin(name)) for below, entry in entries.items()}


class _Loader(yaml.SafeLoader):
    """YAML with two differences: `5e-4` is a number, and only `true` and `false` are booleans (`no` is a word)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, _Loader)
        return node
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None


def _flatten(node: yaml.Node, key: Key, name: str, line: int | None = None) -> dict[Key, Entry]:
    """Every value below `node` that is not a mapping; an empty mapping is a value too."""
    if not isinstance(node, yaml.MappingNode) or not node.value:
        value = {} if isinstance(node, yaml.MappingNode) else _construct(node, name)
        return {key: Entry(value, Origin(name, line))}
    entries: dict[Key, Entry] = {}
    first_line: dict[str, int] = {}
    for key_node, value_node in node.value:
        line, part = key_node.start_mark.line + 1, str(key_node.value)
        if part in first_line:
            raise ConfigError(f"{name}:{line}: {dotted((*key, part))} is on line {first_line[part]} already")
        if len(key) == _DEEPEST:
            raise ConfigError(f"{name}:{line}: {dotted(key)} is nested deeper than {_DEEPEST} levels")
        first_line[part] = line
        entries |= _flatten(value_node, (*key, part), name, line)
    return entries


def _construct(node: yaml.Node, name: str) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        reason = str(getattr(error, "problem", None) or error)
        raise ConfigError(f"{name}:{node.start_mark.line + 1}: not valid YAML: {reason}") from None
    finally:
        loader.dispose()
