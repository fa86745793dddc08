"""python tests/benchmarks/combinations.py --out DIR [--demo DIR] [--steps 300] [--contexts step ...] [--only l1]

Trains every predictor with every loss and target kind that it can learn from on the cache of a finished `flcache demo`
(`--demo`, its folder; without it, a small one is made in DIR), and in the other context modes on caches of the same
videos. Prints a Markdown table of the skill over copying the last step, with its 95 % intervals. Each row is kept as
DIR/rows/<row>.json: run again, the script does the rows that are missing. A row takes about a minute of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from flcache.config import Config, load_config
from flcache.encoder.context import MODES
from flcache.pipelines import encode, evaluate, train
from flcache.predictor import PREDICTORS
from flcache.training.options import Distance, Targets
from flcache.videos import write_dataset

HORIZONS = (1, 4, 8)
PREDICTOR = [
    "predictor.overrides={width: 96, heads: 4, mlp_width: 192, depth: 2, merge: 1}",
    "predictor.flow.sampler=euler",
    "predictor.flow.sampler_steps=4",
]
CONTEXTS = {
    "step": [],
    "window": ["encode.window=2"],
    "prefix": [],
    "full": ["allow_leak=true"],
}


@dataclass(frozen=True)
class Row:
    context: str
    kind: str
    loss: str
    targets: str

    @property
    def name(self) -> str:
        return f"{self.context}-{self.kind}-{self.loss}-{self.targets}"


def rows(contexts: list[str], only: str) -> Iterator[Row]:
    for context in contexts:
        for kind in PREDICTORS:
            for loss in get_args(Distance):
                for targets in get_args(Targets):
                    row = Row(context, kind, loss, targets)
                    if (kind != "flow_matching" or (loss, targets) == ("l2", "raw")) and only in row.name:
                        yield row


def configured(arguments: argparse.Namespace, context: str, *overrides: str) -> Config:
    videos, cache = arguments.demo / "videos", arguments.demo / "cache"
    if context != "step":
        cache = arguments.out / "caches" / context
    paths = [f"dataset.root={videos}", f"dataset.train={videos}/train.csv", f"dataset.val={videos}/val.csv"]
    mode = [f"cache.dir={cache}", f"encode.context={context}", *CONTEXTS[context]]
    # of the configuration's objective only what every combination has: rollout_steps follows from the boundaries
    objective = ["training.rollout_steps=null", "training.horizon_weights=[1.0]"]
    return load_config("demo", [*paths, *mode, *PREDICTOR, *objective, *overrides])


def run_row(arguments: argparse.Namespace, row: Row) -> dict[str, Any]:
    """What `evaluate --json` prints of a fresh run."""
    steps, folder = arguments.steps, arguments.out / "runs" / row.name
    config = configured(
        arguments,
        row.context,
        f"training.dir={folder}",
        f"predictor.kind={row.kind}",
        f"training.loss={row.loss}",
        f"training.targets={row.targets}",
        f"training.steps={steps}",
        f"training.warmup_steps={min(50, steps // 4)}",
        f"training.checkpoint_every={steps}",
        "training.batch_size=8",
        "evaluation.samples=4",
    )
    train.run(config, resume=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluate.run(config, as_json=True)
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| context | predictor | loss | targets | " + " | ".join(f"{h} ahead" for h in HORIZONS) + " |"]
    lines.append("|---|---|---|---|" + "---|" * len(HORIZONS))
    for name, result in found.items():
        ahead = {horizon["horizon"]: horizon for horizon in result["horizons"]}
        cells = [_cell(ahead[h]) if h in ahead else "-" for h in HORIZONS]
        lines.append(f"| {' | '.join([*name.split('-'), *cells])} |")
    return "\n".join(lines)


def _cell(horizon: dict[str, Any]) -> str:
    low, high = horizon["skill_interval"]["copy_last"]
    return f"{horizon['skill']['copy_last']:+.3f} [{low:+.3f}, {high:+.3f}]"


def prepare(arguments: argparse.Namespace) -> None:
    """The videos and caches that are missing."""
    finished = arguments.demo is not None
    if not finished:
        arguments.demo = arguments.out / "demo"
        write_dataset(arguments.demo / "videos", train_videos=24, val_videos=8)
    for context in arguments.contexts:
        if context != "step" or not finished:
            encode.run(configured(arguments, context))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--contexts", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--only", default="", help="a part of the names of the rows to do")
    arguments = parser.parse_args()
    prepare(arguments)
    kept = arguments.out / "rows"
    kept.mkdir(parents=True, exist_ok=True)
    found = {}
    for row in rows(arguments.contexts, arguments.only):
        path = kept / f"{row.name}.json"
        if not path.exists():
            path.write_text(json.dumps(run_row(arguments, row)), encoding="utf-8")
        found[row.name] = json.loads(path.read_text(encoding="utf-8"))
    print(table(found))


if __name__ == "__main__":
    main()
