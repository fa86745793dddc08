"""python tests/check_demo.py DIR [LOG]: are the demo's figures met? With LOG, did its second run redo nothing?"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv[1])
    evaluation = json.loads((folder / "training" / "evaluation.json").read_text(encoding="utf-8"))
    skill = {row["horizon"]: row["skill"]["copy_last"] for row in evaluation["horizons"]}
    print("skill over copying the last step:", {horizon: round(value, 3) for horizon, value in skill.items()})
    if sorted(skill) != list(range(1, 9)) or skill[1] <= 0.3 or min(skill.values()) <= 0:
        sys.exit("the demo must show skill above 0.3 at horizon 1 and above 0 at every horizon up to 8")
    if evaluation["leak"]:
        sys.exit("the demo's contexts have seen the future")
    if len(sys.argv) > 2:
        log = Path(sys.argv[2]).read_text(encoding="utf-8")
        if "Encoding:" in log or "Training:" in log:
            sys.exit(f"the second run did work again:\n{log}")


if __name__ == "__main__":
    main()
