"""Packages that load a module when one of its names is first used, so that importing the package loads no torch.

Such a package imports its names under `if TYPE_CHECKING:`, where readers and type checkers look for them, and ends
with `else: __getattr__ = load_on_demand(__name__, __file__)` (PEP 562).
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def load_on_demand(package: str, init_file: str) -> Callable[[str], Any]:
    """The `__getattr__` of `package`: a name comes from the module that `init_file` imports it from."""

    def load(name: str) -> Any:
        module = _homes(init_file).get(name)
        if module is None or name.startswith("_"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module, package), name)

    return load


@cache
def _homes(init_file: str) -> dict[str, str]:
    """The module of every name, with leading dots where the import is relative."""
    nodes = ast.walk(ast.parse(Path(init_file).read_text(encoding="utf-8")))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return {alias.name: "." * node.level + (node.module or "") for node in imports for alias in node.names}
