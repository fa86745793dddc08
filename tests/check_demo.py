"""python tests/check_demo.py DIR [LOG]: are the demo's figures met? With LOG, did its second run redo nothing?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CLEAR_HORIZONS = 4
"""Up to here the intervals of the errors must not touch."""


def main() -> None:
    folder = Path(sys.argv[1])
    evaluation = json.loads((folder / "training" / "evaluation.json").read_text(encoding="utf-8"))
    rows = evaluation["horizons"]
    for name in rows[0]["skill"]:
        print(f"skill over {name}:", {row["horizon"]: round(row["skill"][name], 3) for row in rows})
    if [row["horizon"] for row in rows] != list(range(1, 9)):
        sys.exit("the demo must look 8 steps ahead")
    missed = [f"{name} at {row['horizon']}" for row in rows for name in row["skill"] if not _is_better(row, name)]
    if missed:
        sys.exit(
            f"the demo must beat every baseline, up to horizon 4 with intervals apart: missed by {', '.join(missed)}"
        )
    found = [row["retrieval"]["prediction"]["at_1"] for row in rows[:CLEAR_HORIZONS]]
    copied = [row["retrieval"]["copy_last"]["at_1"] for row in rows[:CLEAR_HORIZONS]]
    print("the true future is the nearest to the prediction:", [round(share, 2) for share in found])
    if found[0] < 0.9 or any(ours < theirs for ours, theirs in zip(found, copied, strict=True)):
        sys.exit(f"predictions must find their own future, and more often than copies do: {copied}")
    if evaluation["leak"]:
        sys.exit("the demo's contexts have seen the future")
    if len(sys.argv) > 2:
        log = Path(sys.argv[2]).read_text(encoding="utf-8")
        if "Encoding:" in log or "Training:" in log:
            sys.exit(f"the second run did work again:\n{log}")


def _is_better(row: dict[str, Any], baseline: str) -> bool:
    if row["skill"][baseline] < 0:
        return False
    above = row["baselines"][baseline]["error_interval"][0]
    return row["horizon"] > CLEAR_HORIZONS or row["error_interval"][1] < above


if __name__ == "__main__":
    main()
