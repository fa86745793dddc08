"""The table in docs/benchmarks.md: `python tests/benchmarks/loader.py [--rivals PYTHON]`, 4 minutes, 4 GB of disk.

`make_rivals_env.sh` makes that interpreter; rivals that are not installed are left out. Nothing is timed in CI.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flcache.pipelines.bench import loader as bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="a cache to measure on, instead of noise")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--rivals", help="an interpreter that has the rivals")
    options = parser.parse_args()
    rows = bench.run(options.cache, thorough=True, rivals=options.rivals)
    print(
        "| loader | threads / workers | memory | clips/s | GB/s | peak MB | CPU s/GB |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        print(
            f"| {row['loader']} | {row['workers']} | {row['memory']} | {row['clips_per_s']:.0f} | "
            f"{row['gb_per_s']:.2f} | {row['peak_mb']:.0f} | {row['cpu_s_per_gb']:.2f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
