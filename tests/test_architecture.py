"""The floors of docs/architecture.md: imports point downward, siblings do not know each other, nothing goes in circles.

Every import counts, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FLOORS = {
    "errors": 0,
    "leak": 0,
    "batch": 0,
    "bounds": 0,
    "lazy": 0,
    "sealed": 0,
    "remote": 1,
    "sampling": 1,
    "videos": 2,
    "encoder": 2,
    "cache": 2,
    "predictor": 2,
    "engines": 3,
    "training": 3,
    "evaluation": 3,
    "config": 4,
    "pipelines": 5,
}
CACHE_FLOORS = {"storage": 0, "codecs": 1, "options": 2, "format": 2, "write": 3, "read": 3, "check": 4}
FILE_SYSTEM = ("glob", "io", "os", "pathlib", "shutil", "tempfile")
NO_FILES = {"io.BytesIO", "os.cpu_count"}
"""Names of these modules that open no file."""
READS_OTHER_FILES = {"flcache.cache.write.importing": "the files it reads are a user's own, not a cache's"}
OURS = ("flcache", "pipelines")


def source_files() -> dict[str, Path]:
    """Every module by its dotted name; a package by the name of its folder."""
    files = {}
    for folder, package in (("flcache", "flcache"), ("pipelines", "flcache.pipelines")):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            files[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return files


FILES = source_files()


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Dotted names that `module` imports from flcache, and how many dots each was written with."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names if alias.name.split(".")[0] in OURS)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names if base.split(".")[0] in OURS else ():
                name = f"{base}.{alias.name}"
                yield (name if name in FILES else base), node.level


EDGES = [(module, target, dots) for module in FILES for target, dots in imports(module)]
OPTIONS = sorted(
    {target for module, target, _ in EDGES if module == "flcache.config.tree"}
    | {module for module in FILES if module.endswith(".options")}
)
"""What the configuration is composed of."""
HEAVY = ("torch", "transformers", "accelerate", "pandas", "pyarrow", "decord", "av")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 30 and len(EDGES) > 100


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in FILES} - {""} == set(FLOORS)


def test_the_floors_are_documented() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [name for name in FLOORS if f"`{name}`" not in page and f"`{name}.py`" not in page] == []


def test_the_page_names_every_file_once_and_no_other() -> None:
    """Under the heading of its room; those of the ground floor stand in the table."""
    seen = {name for name, floor in FLOORS.items() if floor == 0}
    for section in (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, *lines = section.splitlines()
        rooms = set(heading.split(", "))
        if rooms <= set(FLOORS):
            seen |= rooms
            listed = re.findall(r"\w+\.py", "\n".join(line for line in lines if line.startswith("    ")))
            files = [path.name for module, path in FILES.items() if room(module) in rooms]
            assert Counter(listed) == Counter(name for name in files if name != "__init__.py"), heading
    assert seen == set(FLOORS)


def test_imports_point_downward() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, target, _ in EDGES
        if room(module) and room(target) and room(module) != room(target) and not allowed(room(module), room(target))
    ]
    assert wrong == []


def allowed(above: str, below: str) -> bool:
    """The ground floor is files that know each other; rooms of one floor do not."""
    if FLOORS[above] == FLOORS[below]:
        return FLOORS[above] == 0
    return FLOORS[above] > FLOORS[below]


def test_rooms_of_the_cache_stand_on_each_other() -> None:
    def cache_room(module: str) -> str:
        return module.split(".")[2] if module.startswith("flcache.cache.") else ""

    assert {cache_room(module) for module in FILES} - {""} == set(CACHE_FLOORS)
    wrong = [
        f"{module} imports {target}"
        for module, target, _ in EDGES
        if (above := cache_room(module)) and (below := cache_room(target)) and above != below
        if CACHE_FLOORS[above] <= CACHE_FLOORS[below]
    ]
    assert wrong == []


def libraries(module: str) -> set[str]:
    """Top-level names of all that `module` imports."""
    nodes = list(ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in names}


def test_options_import_no_torch() -> None:
    assert len(OPTIONS) > 6
    assert [module for module in OPTIONS if libraries(module) & set(HEAVY)] == []


def test_options_can_be_imported_where_there_is_no_torch() -> None:
    block = f"import importlib, sys; sys.modules.update(dict.fromkeys({HEAVY}))"
    load = f"for module in {['flcache.config', *OPTIONS]}: importlib.import_module(module)"
    subprocess.run([sys.executable, "-c", f"{block}\n{load}"], cwd=REPOSITORY, check=True, timeout=60)


def test_names_that_are_loaded_on_demand_are_those_that_are_listed() -> None:
    lazy = [module for module, target, _ in EDGES if target == "flcache.lazy"]
    assert len(lazy) > 4
    for module in lazy:
        package = importlib.import_module(module)
        assert [name for name in package.__all__ if not hasattr(package, name)] == []
        with pytest.raises(AttributeError, match=rf"module '{module}' has no attribute 'nothing'"):
            _ = package.nothing


def stage(module: str) -> str:
    """The stage of `flcache.pipelines` that a module belongs to; none for the command line and `setup`."""
    name = [*module.split("."), ""][2] if room(module) == "pipelines" else ""
    return "" if name in ("cli", "setup") else name


def test_no_stage_imports_a_stage() -> None:
    assert {"encode", "train", "bench", "report"} <= {stage(module) for module in FILES}
    pairs = [(module, target) for module, target, _ in EDGES if stage(target) and stage(module) != stage(target)]
    wrong = [f"{module} imports {target}" for module, target in pairs if module != "flcache.pipelines.cli"]
    assert wrong == []


def file_system_uses(source: str) -> Iterator[str]:
    """What of a module can touch the file system: its imports that can, and calls of `open`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            yield "open()"
            continue
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in FILE_SYSTEM and name not in NO_FILES)


@pytest.mark.parametrize(
    "source",
    ["import os", "import os.path", "import pathlib as p", "from pathlib import Path", "from shutil import move",
     "import io", "from io import open", "def f():\n    open('plan.parquet')"],
)  # fmt: skip
def test_uses_of_the_file_system_are_seen(source: str) -> None:
    assert list(file_system_uses(source))


def test_only_the_storage_room_touches_files_of_a_cache() -> None:
    """Everything else in `cache` goes through a `Store`, so that a cache may lie elsewhere than in a folder."""
    found = {
        module: uses
        for module, path in FILES.items()
        if module.startswith("flcache.cache") and not module.startswith("flcache.cache.storage")
        if (uses := list(file_system_uses(path.read_text(encoding="utf-8"))))
    }
    assert set(found) == set(READS_OTHER_FILES), found


def test_nobody_relies_on_a_top_level_pipelines() -> None:
    """In the wheel it is `flcache.pipelines`; a user's own `pipelines` folder may shadow the other name."""
    assert [module for module, target, _ in EDGES if target.split(".")[0] == "pipelines"] == []


def test_pipelines_import_each_other_relatively_and_nothing_else_so() -> None:
    for module, target, dots in EDGES:
        assert (dots > 0) == (room(module) == room(target) == "pipelines"), f"{module} imports {target}"


def test_imports_do_not_go_in_circles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for module, target, _ in EDGES:
        graph[module].add(target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done:
            return
        for target in graph.get(module, ()):
            visit(target, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_pyproject_lists_every_package() -> None:
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {module for module, path in FILES.items() if path.name == "__init__.py"} | {"flcache.configs"}
    assert set(settings["packages"]) == packages
    for package, folder in settings["package-dir"].items():
        assert package in packages and (REPOSITORY / folder / "__init__.py").is_file()
