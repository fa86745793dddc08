"""python tests/benchmarks/actions.py [--folder DIR] [--smallest]: what does a predictor gain from actions?

Videos in which random pushes move the largest shape, encoder and predictor of `flcache demo`; the same short training
once without actions and once with them. Prints a Markdown table of held-out videos: skill over copying the last step of
both, with 95 % intervals, and what the actions of other clips leave of it. Exits 1 unless at every horizon the two
intervals are apart, and shuffled actions cost something by an interval.

`--smallest` trains one step on a few videos and judges nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flcache.config import Config, load_config
from flcache.pipelines import encode, evaluate, train
from flcache.pipelines.demo import TRAIN_VIDEOS, VAL_VIDEOS
from flcache.videos import write_dataset

RUNS = {"without": "predictor.actions=false", "with": "predictor.actions=true"}
SETTINGS = [
    "clip.frames=16",  # 8 steps
    "clip.clips_per_video=2",
    "training.steps=450",
    "training.batch_size=8",
    "training.context_steps=4",
    "training.rollout_steps=2",
    "training.validate_every=null",
    "evaluation.horizons=4",
]
HEAD = """| step | seconds | without actions | with actions | with those of other clips | skill over these |
|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("actions"))
    arguments = parser.parse_args()
    train_videos, val_videos = (16, 8) if arguments.smallest else (TRAIN_VIDEOS, VAL_VIDEOS)
    write_dataset(arguments.folder / "videos", train_videos=train_videos, val_videos=val_videos, actions=True)
    changes = ["training.steps=1"] if arguments.smallest else []
    with contextlib.redirect_stdout(sys.stderr):
        without, conditioned = (run(arguments.folder, name, changes) for name in RUNS)
    print(HEAD)
    met = [row(*pair) for pair in zip(without, conditioned, strict=True)]
    sys.exit(0 if all(met) or arguments.smallest else 1)


def run(folder: Path, name: str, changes: list[str]) -> list[dict[str, Any]]:
    """Encode what is missing, train and evaluate; the horizons of evaluation.json."""
    config = configured(folder, f"training.dir={folder / name}", RUNS[name], *SETTINGS, *changes)
    encode.run(config)
    train.run(config, resume=True)
    evaluate.run(config)
    found: list[dict[str, Any]] = json.loads((folder / name / "evaluation.json").read_text())["horizons"]
    return found


def configured(folder: Path, *overrides: str) -> Config:
    videos = folder / "videos"
    lists = [f"dataset.{split}={videos / split}.csv" for split in ("train", "val")]
    places = [f"dataset.root={videos}", *lists, f"cache.dir={folder / 'cache'}"]
    return load_config("demo", [*places, "dataset.arrays=[actions]", *overrides])


def row(without: Mapping[str, Any], conditioned: Mapping[str, Any]) -> bool:
    """Print a horizon; whether actions gain by an interval, and shuffled ones cost by one."""
    skills = [estimate(each["skill"], each["skill_interval"], "copy_last") for each in (without, conditioned)]
    shuffled = conditioned["baselines"]["shuffled_actions"]
    low, high = shuffled["skill_over_copy_last_interval"]
    left = f"{shuffled['skill_over_copy_last']:.2f} ({low:.2f} to {high:.2f})"
    over = estimate(conditioned["skill"], conditioned["skill_interval"], "shuffled_actions")
    print(
        f"| {without['horizon']} | {without['seconds']:.2f} | {skills[0]} | {skills[1]} | {left} | {over} |", flush=True
    )
    before, after = (each["skill_interval"]["copy_last"] for each in (without, conditioned))
    return bool(after[0] > before[1] and conditioned["skill_interval"]["shuffled_actions"][0] > 0)


def estimate(skill: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], over: str) -> str:
    low, high = intervals[over]
    return f"{skill[over]:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
