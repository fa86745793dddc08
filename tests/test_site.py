"""The site of the docs builds with every link and anchor in place, and every command on it is run by something."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_BY = {
    ".venv/bin/pip install .": ".ci/run",
    "python3 -m venv .venv": ".ci/run",
    "flcache demo": ".ci/run",
    "flcache bench": "tests/pipelines/test_bench.py",
    "flcache audit": "tests/pipelines/test_audit_and_probe.py",
    "flcache encode --config my.yaml --engine ray": "tests/cluster/check_ray.py",
    "flcache encode --config my.yaml cache.dir=s3": "tests/pipelines/test_bucket.py",
    "flcache train --config my.yaml cache.dir=s3": "tests/pipelines/test_bucket.py",
    "flcache encode --config my.yaml dataset.root=s3:": "tests/pipelines/test_videos_in_a_bucket.py",
    'flcache encode --config my.yaml "dataset.arrays': "tests/pipelines/test_frame_arrays_encoded.py",
    'flcache train --config my.yaml "dataset.arrays': "tests/pipelines/test_trained_with_actions.py",
    'flcache evaluate --config my.yaml "dataset.arrays': "tests/pipelines/test_trained_with_actions.py",
    "flcache push": "tests/pipelines/test_transfer.py",
    "flcache pull": "tests/pipelines/test_transfer.py",
    "accelerate launch": "tests/pipelines/test_sharding.py",
    "torchrun": "tests/pipelines/test_signals.py",
    "python tests/benchmarks": "tests/benchmarks/test_they_run.py",
    "python tests/cluster/check_ray.py": "tests/cluster/check_ray.py",
    "python tests/cluster/check_cuda.py": "tests/cluster/check_cuda.py",
    "bash tests/cluster/check_slurm.sh": "tests/cluster/check_slurm.sh",
    "bash tests/cluster/check_radosgw.sh": "tests/cluster/check_radosgw.sh",
    "bash tests/benchmarks/make_rivals_env.sh": "tests/benchmarks/make_rivals_env.sh",
}
"""What runs the commands that `tests/pipelines/test_docs.py` does not type."""
TYPED = ("README.md", "index.md", "finetune.md")
"""Pages whose `flcache` lines that test types."""
BY_HAND = ("pip install", "git worktree", "mkdir", "bwrap", "docker", "export KINETICS_400")
"""They need a network, another program, or the reader's own paths."""
COMMAND = re.compile(r"^ {4}((?:flcache|torchrun|accelerate|python3?|bash|pip|git|docker|bwrap|\.venv/\S+) .*)$", re.M)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    start, python = ((tmp_path / "site" / page / "index.html").read_text(encoding="utf-8") for page in (".", "python"))
    assert "LatentLoader" in python
    assert not re.findall(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)"', start)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_run_by_something(page: Path) -> None:
    for line in COMMAND.findall(page.read_text(encoding="utf-8")):
        if line.startswith(BY_HAND) or (page.name in TYPED and line.startswith("flcache")):
            continue
        (found,) = {path for start, path in RUN_BY.items() if line.startswith(start)} or {f"nothing runs: {line}"}
        assert (ROOT / found).is_file(), f"{page.name}: {found}"
