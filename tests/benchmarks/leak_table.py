"""python tests/benchmarks/leak_table.py [--folder DIR] [--smallest]: how much of the future does a context know?

Trains a small V-JEPA 2 and a predictor end to end on the demo's videos with `encode.context=prefix`, exports the
encoder, and encodes the videos with it in the modes `step`, `prefix` and `full`; the same with the random weights that
it began with. For each cache: `flcache audit`, the same predictor trained in as many steps, and a linear probe that
reads from the context alone where the largest shape of a video will be. Prints two Markdown tables.

What DIR holds already is not done again. `--smallest` takes a few videos, one step of each training, no random weights
and two of the modes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from positions import FRAMES, SIZE, Samples, centres, probe_distances
from torch import Tensor

from flcache.cache import LatentCache
from flcache.config import Config, load_config
from flcache.evaluation.bootstrap import ratio_intervals
from flcache.pipelines import audit, encode, evaluate, export, train
from flcache.pipelines.demo import TRAIN_VIDEOS, VAL_VIDEOS
from flcache.videos import write_dataset

BOUNDARY = 8
"""Steps of a context, of the demo's 16."""
AUDITED_CLIPS = 8
ENCODER = [
    "encoder.architecture.crop_size=16",
    "encoder.architecture.patch_size=16",
    "encoder.architecture.initializer_range=0.2",
    "encoder.processor.crop_size=16",
    "training.validate_every=null",
]
"""One vector for each step, of 16 x 16 px: what an encoder attends to is other steps."""
LEARN = [
    "training.source=videos",
    "encoder_trainable=true",
    "encode.context=prefix",
    "cache.dir=",
    "predictor.overrides={depth: 1, width: 32, heads: 4, mlp_width: 128, merge: 1}",
    "training.rollout_steps=4",
    "training.horizon_weights=[1.0]",
    "training.anti_collapse=sigreg",
    "training.anti_collapse_weight=3",
    "training.ema_decay=0.98",
    "training.batch_size=16",
    "training.warmup_steps=30",
    "training.steps=700",
    "training.checkpoint_every=100",
]
"""A predictor of one small layer leaves it to the encoder to find out what moves."""
PREDICT = ["training.steps=500", "training.checkpoint_every=500"]
"""Of the predictor that is compared, beside the demo's settings."""
CONTEXTS = {"step": [], "prefix": [], "full": ["allow_leak=true"]}
HORIZONS = (1, 4, 8)
HEAD = """| encoder | context | moved by | steps ahead | error | skill over copying | skill over ridge | retrieval |
|---|---|---|---|---|---|---|---|"""
PROBE_HEAD = f"""
| encoder | read from | {" | ".join(f"{horizon} ahead" for horizon in HORIZONS)} |
|---|---|{"---|" * len(HORIZONS)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("leak-table"))
    parser.add_argument("--smallest", action="store_true")
    arguments = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # what the stages print stays apart from the tables
        lines = tables(arguments.folder, arguments.smallest)
    print(*lines, sep="\n")


def tables(folder: Path, smallest: bool) -> list[str]:
    changes = ["training.steps=1"] if smallest else []
    train_videos, val_videos = (16, 8) if smallest else (TRAIN_VIDEOS, VAL_VIDEOS)
    write_dataset(folder / "videos", train_videos=train_videos, val_videos=val_videos)
    trained = {"trained": [f"encoder.name={learned(folder, changes)}"]}
    encoders = trained if smallest else {"random": [], **trained}
    contexts = ("prefix", "full") if smallest else CONTEXTS
    predictions, probes = [HEAD], [PROBE_HEAD]
    for name, encoder in encoders.items():
        found = {}
        for context in contexts:
            config = encoded_and_trained(folder, name, context, [*encoder, *changes])
            seen, judged = (latents(config, split) for split in ("train", "val"))
            predictions += predicted(config, f"| {name} | `{context}` ")
            found[f"the context, `{context}`"] = read(seen, judged, before)
            print(f"{time.strftime('%H:%M:%S')} {name}, {context}: done")
        found["by how much `full` is nearer than `prefix`"] = (
            found["the context, `prefix`"] - found["the context, `full`"]
        )
        found["the later steps themselves"] = read(seen, judged, itself)
        probes += [f"| {name} | {what} {cells(distances)}" for what, distances in found.items()]
    return [*predictions, *probes, *(f"| none | {what} {cells(each)}" for what, each in bars(seen, judged).items())]


def configured(folder: Path, name: str, *changes: str) -> Config:
    videos = folder / "videos"
    paths = [f"dataset.root={videos}", f"dataset.train={videos}/train.csv", f"dataset.val={videos}/val.csv"]
    return load_config("demo", [*paths, f"training.dir={folder}/{name}/training", *ENCODER, *changes])


def learned(folder: Path, changes: list[str]) -> Path:
    """The folder of an encoder that was trained end to end."""
    train.run(configured(folder, "end-to-end", *LEARN, *changes), resume=True)
    model = folder / "end-to-end" / "model"
    if not model.exists():
        export.run(folder / "end-to-end" / "training", model)
    return model / "encoder"


def encoded_and_trained(folder: Path, name: str, context: str, changes: list[str]) -> Config:
    """The configuration of a cache, now there, and of a predictor that was trained on it."""
    mode = [f"encode.context={context}", f"cache.dir={folder}/{name}-{context}/cache", *CONTEXTS[context]]
    config = configured(folder, f"{name}-{context}", *mode, *PREDICT, *changes)
    encode.run(config)
    train.run(config, resume=True)
    return config


def predicted(config: Config, label: str) -> list[str]:
    """A row for each horizon of the trained predictor, evaluated."""
    evaluate.run(config)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        audit.run(Path(config.require("cache.dir")), config, AUDITED_CLIPS, as_json=True)
    moved = json.loads(printed.getvalue())["contexts_moved_by"]
    kept = Path(config.require("training.dir")) / "evaluation.json"
    horizons = json.loads(kept.read_text(encoding="utf-8"))["horizons"]
    return [f"{label}| {moved:.1%} {_figures(horizons[horizon - 1])}" for horizon in HORIZONS]


def _figures(found: dict[str, Any]) -> str:
    skill, interval = found["skill"], found["skill_interval"]
    over = [cell(skill[name], interval[name]) for name in ("copy_last", "ridge")]
    shown = [str(found["horizon"]), cell(found["error"], found["error_interval"]), *over]
    return f"| {' | '.join(shown)} | {found['retrieval']['prediction']['at_1']:.0%} |"


def cell(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def latents(config: Config, split: str) -> Samples:
    """Every step of a cache (V, T, H * W * D), and where the shapes are."""
    cache = LatentCache(config.require("cache.dir"), split)
    stored = torch.stack([torch.from_numpy(clip.latents).float() for clip in cache])  # (V, T, H, W, D)
    return Samples(stored.flatten(2), centres(cache.ids, FRAMES, stored.shape[1]))


def before(inputs: Tensor, step: int) -> Tensor:
    """What a probe of `step` sees of (V, T, P): the context, (V, 1, P')."""
    return inputs[:, None, :BOUNDARY].flatten(2)


def itself(inputs: Tensor, step: int) -> Tensor:
    """The same: the step that it is about."""
    return inputs[:, step, None]


def read(seen: Samples, judged: Samples, part: Callable[[Tensor, int], Tensor]) -> Tensor:
    """(V, K) px from where a probe fitted to `part` of `seen` finds the shapes of `judged` at each horizon."""
    found = []
    for step in (BOUNDARY - 1 + horizon for horizon in HORIZONS):
        pair = (Samples(part(each.inputs, step), each.places[:, step, None]) for each in (seen, judged))
        found.append(SIZE * probe_distances(*pair))
    return torch.cat(found, dim=1)


def bars(seen: Samples, judged: Samples) -> dict[str, Tensor]:
    """The same (V, K) of what is known without any latent."""
    places, steps = judged.places, BOUNDARY - 1 + torch.tensor(HORIZONS)
    last, speed = places[:, BOUNDARY - 1, None], places[:, BOUNDARY - 1, None] - places[:, BOUNDARY - 2, None]
    line = last + speed * torch.tensor(HORIZONS)[:, None]  # (V, K, 2)
    mean = seen.places[:, steps].mean(0)
    return {
        "true places in the context, the same probe": read(of_places(seen), of_places(judged), before),
        "true places in the context, a straight line": SIZE * (line - places[:, steps]).norm(dim=-1),
        "nothing: the mean place": SIZE * (mean - places[:, steps]).norm(dim=-1),
    }


def of_places(samples: Samples) -> Samples:
    return Samples(samples.places, samples.places)


def cells(distances: Tensor) -> str:
    """Means of (V, K) over videos, with their intervals."""
    values, videos = distances.double(), torch.arange(len(distances))
    intervals = ratio_intervals(values, torch.ones_like(values), videos)
    shown = (
        cell(mean, (interval.low, interval.high))
        for mean, interval in zip(values.mean(0).tolist(), intervals, strict=True)
    )
    return f"| {' | '.join(shown)} |"


if __name__ == "__main__":
    main()
