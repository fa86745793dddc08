"""python tests/check_types.py PYTHON: mypy on the Python of the docs, as in a user's project.

PYTHON is an interpreter whose environment has flcache installed from a wheel; mypy is that of this interpreter.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGES = sorted((Path(__file__).resolve().parent.parent / "docs").glob("*.md"))
FOREIGN = ("datasets", "webdataset")
"""Not installed there: blocks with them read caches without flcache."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = list(write_blocks(Path(folder)))
        print(f"{len(files)} blocks of the docs")
        command = [sys.executable, "-m", "mypy", "--python-executable", sys.argv[1], *files]
        sys.exit(subprocess.run(command, cwd=folder, check=False).returncode)


def write_blocks(folder: Path) -> list[str]:
    """Every block that imports flcache, in a file of its own; returns their names."""
    names = []
    for page in PAGES:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
            if "flcache" in code and not any(f"import {name}" in code for name in FOREIGN):
                names.append(f"{page.stem.replace('-', '_')}_{number}.py")
                (folder / names[-1]).write_text(code, encoding="utf-8")
    return names


if __name__ == "__main__":
    main()
