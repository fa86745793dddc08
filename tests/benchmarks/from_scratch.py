"""python tests/benchmarks/from_scratch.py [--folder DIR] [--only ema] [--smallest]: does an encoder learn from scratch?

Trains a fresh encoder and predictor on the videos of `flcache demo`, once with targets from the encoder's moving
average and once from the encoder itself, both with SIGReg: without it the average kept more of the error than is asked,
0.82 to 0.86. The encoder makes of each step, 2 frames, one vector of 16 numbers: random weights leave little in it of
where things are. A linear probe reads the place of the largest shape from the latents of the validation videos, before
and after. Prints a Markdown table; exits 1 unless each run takes at most 10 minutes, keeps more than half of the
effective rank, and leaves the probe at most 0.8 of its error.

`--smallest` trains one step on a few videos and judges nothing. DIR must not hold these runs already.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from positions import FRAMES, SIZE, Samples, centres, probe_error

from flcache.config import Config, load_config
from flcache.pipelines import train
from flcache.pipelines.demo import TRAIN_VIDEOS, VAL_VIDEOS
from flcache.pipelines.setup.model import load_trained
from flcache.pipelines.setup.source import Reading, open_source
from flcache.training import latest_checkpoint
from flcache.training.collapse import latent_health
from flcache.videos import write_dataset

MOST_SECONDS, LEAST_RANK, MOST_ERROR = 600, 0.5, 0.8
SETTINGS = [
    "training.source=videos",
    "encoder_trainable=true",
    "encoder.architecture.hidden_size=16",
    "encoder.architecture.patch_size=64",
    "predictor.kind=parallel",
    "predictor.overrides={depth: 2, width: 64, heads: 4, mlp_width: 256, merge: 1}",
    "training.batch_size=8",
    "training.warmup_steps=30",
    "training.horizon_weights=[1.0]",
    "training.learning_rate=4e-3",
    "training.steps=200",
    "training.validate_every=null",
    "training.checkpoint_every=1000000",
]
SIGREG = ["training.anti_collapse=sigreg", "training.anti_collapse_weight=30"]
RUNS = {
    "ema": ["training.target_encoder=ema", "training.ema_decay=0.98", *SIGREG],
    "sigreg": ["training.target_encoder=online", *SIGREG],
}
HEAD = """| run | seconds | effective rank | to the first | error of the probe, px | to the first |
|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("from-scratch"))
    parser.add_argument("--only", choices=RUNS, nargs="+", default=list(RUNS))
    parser.add_argument("--smallest", action="store_true")
    arguments = parser.parse_args()
    train_videos, val_videos = (16, 8) if arguments.smallest else (TRAIN_VIDEOS, VAL_VIDEOS)
    write_dataset(arguments.folder / "videos", train_videos=train_videos, val_videos=val_videos)
    print(HEAD, flush=True)
    changes = ["training.steps=1"] if arguments.smallest else []
    met = [run(arguments.folder, name, changes) for name in arguments.only]
    sys.exit(0 if all(met) or arguments.smallest else 1)


def run(folder: Path, name: str, changes: list[str]) -> bool:
    """Train, and print a row; whether it meets what is asked."""
    config = configured(folder, f"training.dir={folder / name}", *RUNS[name], *changes)
    started = time.monotonic()
    train.run(config)
    seconds = time.monotonic() - started
    (rank_before, error_before), (rank, error) = look(config, trained=False), look(config, trained=True)
    kept, left = rank / rank_before, error / error_before
    ranks, errors = f"{rank_before:.1f} to {rank:.1f} | {kept:.2f}", f"{error_before:.2f} to {error:.2f} | {left:.2f}"
    print(f"| {name} | {seconds:.0f} | {ranks} | {errors} |", flush=True)
    return seconds <= MOST_SECONDS and kept > LEAST_RANK and left <= MOST_ERROR


def configured(folder: Path, *changes: str) -> Config:
    videos = folder / "videos"
    paths = [f"dataset.root={videos}", f"dataset.train={videos}/train.csv", f"dataset.val={videos}/val.csv"]
    return load_config("demo", [*paths, "cache.dir=", *SETTINGS, *changes])


def look(config: Config, *, trained: bool) -> tuple[float, float]:
    """Effective rank of the validation latents and the probe's error in px, of the encoder `trained` or as it began."""
    seen, judged = (encoded(config, split, trained) for split in ("train", "val"))
    return latent_health(judged.inputs[:, :, None, None]).rank, SIZE * probe_error(seen, judged)


@torch.no_grad()
def encoded(config: Config, split: str, trained: bool) -> Samples:
    """The latents (V, T, H * W * D) of the encoder that makes the targets, and where the shapes are."""
    with open_source(config, Reading(split, 16, shuffle=False), device="cpu") as source:
        encoder = source.encoder
        if trained:
            checkpoint = latest_checkpoint(Path(config.require("training.dir")) / "checkpoints")
            assert checkpoint is not None
            model = load_trained(config, source, checkpoint)
            encoder = model.target_encoder or model.encoder
        assert encoder is not None
        encoder.eval()
        found = [(encoder(batch.frames).flatten(2), batch.ids) for batch in source.batches]
    latents, clip_ids = torch.cat([each for each, _ in found]), [clip_id for _, ids in found for clip_id in ids]
    return Samples(latents, centres(clip_ids, FRAMES, latents.shape[1]))


if __name__ == "__main__":
    main()
