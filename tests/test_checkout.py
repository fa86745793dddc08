"""`flcache.pipelines` in a checkout, whose folder `flcache/` comes before an installed package on the import path.

`.ci/run` does the same beside a wheel.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def test_pipelines_are_those_of_the_checkout() -> None:
    """Without `site` (-S), and so without the hooks of an editable install."""
    libraries = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(libraries)}

    def python(*arguments: str) -> str:
        command = [sys.executable, "-S", *arguments]
        done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    places = "import flcache, flcache.pipelines.cli as cli; print(flcache.__file__, cli.__file__)"
    assert python("-c", places).split() == [str(CHECKOUT / "flcache/__init__.py"), str(CHECKOUT / "pipelines/cli.py")]
    assert "vjepa2" in python("-m", "flcache.pipelines.cli", "inspect-config", "--config", "vjepa2_kinetics_400")


def test_one_import_gives_what_users_need_and_loads_no_torch() -> None:
    names = "flcache.LatentCache, flcache.LatentLoader, flcache.LatentVideoModel, flcache.load_config"
    loaded = 'print(*{"torch", "pandas", "transformers"} & set(sys.modules))'
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, flcache; {loaded}; {names}, flcache.load_predictor"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
