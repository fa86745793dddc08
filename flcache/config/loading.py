"""Reading and printing a configuration.

YAML files only override defaults; an unknown key is an error that suggests a similar one. Paths are relative to the
current folder, whichever file names them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import yaml

from flcache.bounds import OptionalPath
from flcache.config.inherit import Layers, find_config, overlay, read_config, read_overrides, resolve
from flcache.config.schema import as_dict, as_tree, build, check_keys, convert, schema_keys
from flcache.config.tree import Config
from flcache.config.yaml_lines import Origin, dotted
from flcache.errors import ConfigError


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration with its history."""

    config: Config
    origins: dict[str, Origin]
    """Where the value of a dotted key was written; a key that is missing here has its default."""
    conflicts: tuple[str, ...]
    """A line for every key to which files gave different values."""


_KEYS = schema_keys(Config)
_MAY_BE_UNSET = {key for key, hint in _KEYS.items() if hint == OptionalPath}


def load_config(path_or_name: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration at a path, or the shipped one of that name, with its `inherits` and `KEY=VALUE` overrides.
    None is that of the defaults.

    Raises ConfigError with one line for every key or value that is wrong, naming file and line.
    """
    return load_resolved(path_or_name, overrides).config


def load_resolved(path_or_name: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> ResolvedConfig:
    """As `load_config`, and also where each value came from and which files disagreed."""
    files = Layers() if path_or_name is None else read_config(find_config(path_or_name))
    layers = overlay(files, read_overrides(overrides), silently=True)
    entries = layers.entries
    _refuse(check_keys(entries, _KEYS))
    resolved, unresolved = resolve(entries, as_dict(Config()))
    unset = {key: f"{reason} ({entries[key].origin})" for key, reason in unresolved.items() if key in _MAY_BE_UNSET}
    problems = [f"{entries[key].origin}: {dotted(key)}: {unresolved[key]}" for key in unresolved if key not in unset]
    values, wrong = convert(resolved, _KEYS)
    problems += wrong
    config = build(Config, as_tree(values), problems)
    _refuse(problems)
    config = replace(config, unset={dotted(key): reason for key, reason in unset.items()})
    return ResolvedConfig(config, {dotted(key): entry.origin for key, entry in entries.items()}, layers.conflicts)


def to_yaml(config: Config) -> str:
    """Every key and its value; in a file, `load_config` reads it back."""
    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def print_config(config: Config) -> None:
    """Print every key and its value, as YAML."""
    print(to_yaml(config), end="")


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))
