"""Configuration files in layers: what they inherit, which value counts, and where each value was written.

A file may name others under `inherits`. Later ones override earlier ones, and the file itself overrides all. This
module knows YAML files, keys and lines; `flcache.config.tree` decides which keys exist and what they mean.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from flcache.config.schema import as_tree
from flcache.config.yaml_lines import Entry, Key, Origin, dotted, read_value, read_yaml, shown
from flcache.errors import ConfigError

STATED_OF: Mapping[Key, Key] = {("encoder", "name"): ("encoder", "architecture")}
"""Keys that name something, and those below which its fields are stated."""


@dataclass(frozen=True)
class Layers:
    """Merged files: for every key, the different values it was given; the last one counts."""

    history: Mapping[Key, tuple[Entry, ...]] = field(default_factory=dict)

    @property
    def entries(self) -> dict[Key, Entry]:
        return {key: entries[-1] for key, entries in self.history.items()}

    @property
    def conflicts(self) -> tuple[str, ...]:
        """A line for every key with different values: `size: 64 (a.yaml:2) -> 32 (main.yaml:2)`."""
        lines = []
        for key, entries in self.history.items():
            steps = [f"{shown(entry.value)} ({entry.origin})" for entry in entries]
            if len(steps) > 1:
                lines.append(f"{dotted(key)}: {' -> '.join(steps)}")
        return tuple(lines)


def shipped_folder() -> Path:
    """The configurations that come with flcache: in the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_names() -> list[str]:
    """Names of the shipped experiments, without `.yaml`."""
    return sorted(path.stem for path in shipped_folder().glob("*.yaml"))


def find_config(path_or_name: str | os.PathLike[str]) -> Path:
    """The file at a path, or the shipped one of that name. Raises ConfigError listing the shipped names."""
    path = Path(path_or_name)
    found = path if path.is_file() else _first_file(shipped_folder() / path)
    if found is None:
        raise ConfigError(
            f"{path}: no such file, and no shipped configuration; shipped are {', '.join(shipped_names())}"
        )
    return found


def read_config(path: Path, *, inherited_by: tuple[Path, ...] = ()) -> Layers:
    """The file at `path` over everything that it inherits. Raises ConfigError showing the chain of files."""
    path = path.resolve()
    chain = (*inherited_by, path)
    if path in inherited_by:
        raise ConfigError(f"{_chain(chain)}: the files inherit in a circle; remove one of the entries")
    own, parents = _read_file(path, chain)
    layers = Layers()
    for name, origin in parents:  # beside the file that names them, or shipped
        parent = _first_file(path.parent / Path(name).expanduser()) or _first_file(shipped_folder() / name)
        if parent is None:
            raise ConfigError(f"{origin}: inherits {name}, and there is no such file ({_chain(chain)} -> {name})")
        layers = overlay(layers, read_config(parent, inherited_by=chain))
    return overlay(layers, own)


def read_overrides(overrides: Iterable[str]) -> Layers:
    """`KEY=VALUE` texts as a layer; values are YAML, and later ones override earlier ones. Raises ConfigError."""
    layers = Layers()
    for override in overrides:
        name, equals, text = override.partition("=")
        key = tuple(name.strip().split("."))
        if not equals or not all(key):
            raise ConfigError(f'"{override}": expected KEY=VALUE, such as training.steps=300')
        layers = merge(layers, _one_layer(read_value(text, key, "command line")), silently=True)
    return layers


def overlay(base: Layers, top: Layers, *, silently: bool = False) -> Layers:
    """`merge`, without what `base` states of a thing of which `top` names another."""
    outdated = [
        key
        for name, stated in STATED_OF.items()
        if _is_renamed(name, base, top)
        for key in base.history
        if key[: len(stated)] == stated
    ]
    kept = Layers({key: entries for key, entries in base.history.items() if key not in outdated})
    return merge(kept, top, silently=silently)


def _is_renamed(name: Key, base: Layers, top: Layers) -> bool:
    new, old = (layers.entries[name].value if name in layers.history else None for layers in (top, base))
    return new is not None and new != old


def merge(base: Layers, top: Layers, *, silently: bool = False) -> Layers:
    """`top` over `base`. Overridden values stay in the history, unless `silently`."""
    history = dict(base.history)
    for key, added in top.history.items():
        below = [other for other in history if other[: len(key)] == key or key[: len(other)] == other]
        if added[-1].value == {} and any(len(other) > len(key) for other in below):
            continue  # an empty mapping adds nothing to a mapping
        replaced = [entry for other in below for entry in history.pop(other)]
        history[key] = added if silently else _without_repeats([*replaced, *added])
    return Layers(history)


def resolve(entries: Mapping[Key, Entry], defaults: Mapping[str, Any]) -> tuple[dict[Key, Entry], dict[Key, str]]:
    """Entries with their `${...}` resolved against all entries over `defaults`; and by key, why one could not be."""
    values = as_tree({key: entry.value for key, entry in entries.items()})
    try:
        tree = OmegaConf.merge(OmegaConf.create(dict(defaults)), OmegaConf.create(values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {_reason(error)}") from None
    resolved, problems = dict(entries), {}
    for key, entry in entries.items():
        if not _is_open(entry.value):
            continue
        try:
            resolved[key] = Entry(_look_up(tree, key), entry.origin)
        except OmegaConfBaseException as error:
            del resolved[key]
            problems[key] = _reason(error)
    return resolved, problems


def _read_file(path: Path, chain: Sequence[Path]) -> tuple[Layers, list[tuple[str, Origin]]]:
    """The file's own values, and what it inherits."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{_chain(chain)}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_chain(chain)}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    name = _display(path)
    entries = read_yaml(text, name)
    inherits = {key: entry for key, entry in entries.items() if key[0] == "inherits"}
    own = {key: entry for key, entry in entries.items() if key not in inherits}
    return _one_layer(own), [parent for key, entry in inherits.items() for parent in _parents(key, entry)]


def _one_layer(entries: Mapping[Key, Entry]) -> Layers:
    return Layers({key: (entry,) for key, entry in entries.items()})


def _parents(key: Key, entry: Entry) -> list[tuple[str, Origin]]:
    names = [entry.value] if isinstance(entry.value, str) else entry.value
    if key != ("inherits",) or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{entry.origin}: inherits: expected a list of files, got {shown(entry.value)}")
    return [(name, entry.origin) for name in names]


def _first_file(path: Path) -> Path | None:
    """`path`, or the file with `.yaml` appended."""
    return next((p for p in (path, path.with_name(path.name + ".yaml")) if p.name and p.is_file()), None)


def _chain(paths: Sequence[Path]) -> str:
    return " -> ".join(_display(path) for path in paths)


def _display(path: Path) -> str:
    """`path` relative to the current folder, or `configs/...` where shipped, else absolute."""
    shipped = shipped_folder()
    if path.is_relative_to(shipped):
        return str(path.relative_to(shipped.parent))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _without_repeats(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """`entries` without those that the next one repeats, and without empty mappings but the last entry."""
    filled = [entry for entry in entries[:-1] if entry.value != {}] + [entries[-1]]
    return tuple(e for e, after in zip(filled, [*filled[1:], None], strict=True) if not after or e.value != after.value)


def _is_open(value: Any) -> bool:
    if isinstance(value, list):
        return any(_is_open(item) for item in value)
    return isinstance(value, str) and ("${" in value or value == "???")


def _look_up(tree: Any, key: Key) -> Any:
    for part in key:
        tree = tree[part]
    return OmegaConf.to_container(tree, resolve=True) if OmegaConf.is_config(tree) else tree


def _reason(error: OmegaConfBaseException) -> str:
    text = str(error).splitlines()[0]
    missing = re.search(r"Environment variable '([^']*)' not found", text)
    if isinstance(error, InterpolationResolutionError) and missing:
        return f"the environment variable {missing[1]} is not set"
    return text
