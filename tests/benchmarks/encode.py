"""python tests/benchmarks/encode.py [ROOT CSV] [--clips 24] [--rounds 2]: flcache against the loop one would write.

Both encode the same clips (16 frames, every fourth) with the same random-weight V-JEPA 2 (256 px, 384 x 12, whole clips
jointly), in one process, round after round. The plain loop is decord -> AutoVideoProcessor -> model -> ShardWriter;
flcache also checks, hashes, indexes and commits. Without ROOT and CSV it writes synthetic videos of 340 x 340.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import decord
import torch
import webdataset

from flcache.cache import create_or_check, read_commits
from flcache.encoder import ContextRule, EncoderSource, LatentVideoModel, hard_keys, load_encoder
from flcache.engines import EncodeJob, ShardTask, local
from flcache.videos import (
    ClipRequest,
    ClipRule,
    PlannedClip,
    VideoFolder,
    read_annotations,
    write_dataset,
)

FRAMES, STRIDE = 16, 4
ENCODER = {
    "model_type": "vjepa2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "frames_per_clip": FRAMES,
    "pred_hidden_size": 96,
    "pred_num_attention_heads": 3,
    "pred_num_hidden_layers": 1,
}
SOURCE, CONTEXT = EncoderSource(architecture=ENCODER), ContextRule("full")


def plain_loop(files: list[Path], model: LatentVideoModel, out: Path) -> float:
    """Seconds of the loop a user would write instead."""
    out.mkdir()
    started = time.perf_counter()
    with (
        webdataset.ShardWriter(f"{out}/plain-%06d.tar", maxcount=64, verbose=0) as writer,
        torch.inference_mode(),
    ):
        for number, file in enumerate(files):
            reader = decord.VideoReader(str(file), num_threads=1)
            indices = [min(len(reader) - 1, frame * STRIDE) for frame in range(FRAMES)]
            frames = torch.from_numpy(reader.get_batch(indices).asnumpy()).permute(0, 3, 1, 2)
            pixels = model.processor(frames, return_tensors="pt")["pixel_values_videos"]
            tokens = model.encoder(pixel_values_videos=pixels).last_hidden_state
            latents = tokens[0].reshape(FRAMES // 2, 16, 16, -1).to(torch.float16).numpy()
            writer.write({"__key__": f"{number:08d}", "latents.npy": latents})
    return time.perf_counter() - started


def flcache_encode(files: list[Path], model: LatentVideoModel, out: Path) -> float:
    """Seconds of the same with flcache, from the first decode to the commit."""
    rule = ClipRule(FRAMES, None, STRIDE, 1, "pad")
    shape = model.latent_shape(FRAMES)
    hard: dict[str, Any] = {
        **hard_keys(model),
        "clip": rule.as_dict(),
        "context": model.context.as_dict(model.num_steps(FRAMES)),
        "layout": {"shape": list(shape)},
        "codec": "float16",
    }
    spec, _ = create_or_check(out, hard, {})
    request = ClipRequest(FRAMES, 0.0, None, STRIDE, "pad")
    clips = [PlannedClip(f"clip{k}", file.stem, str(file), None, k, request) for k, file in enumerate(files)]
    job = EncodeJob(out, Path("/"), {}, spec, SOURCE, CONTEXT, "cpu", 2, 60.0, 4)
    started = time.perf_counter()
    local.run(job, [ShardTask("train", 0, tuple(clips))], load_model=lambda: model)
    seconds = time.perf_counter() - started
    (commit,) = read_commits(out, fingerprint=spec.fingerprint)
    assert commit.clips == len(files), f"{commit.failed} clips failed"
    return seconds


def find_files(root: Path, csv: Path, clips: int) -> list[Path]:
    folder = VideoFolder(root)
    found = [path for video in read_annotations(csv) if (path := folder.find(video.path)) is not None]
    return list(itertools.islice(itertools.cycle(found), clips))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path)
    parser.add_argument("csv", nargs="?", type=Path)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        root, csv = options.root, options.csv
        if root is None:
            root, csv = work / "videos", work / "videos" / "train.csv"
            write_dataset(root, train_videos=min(8, options.clips), val_videos=0, frames=64, size=340, fps=16)
        files = find_files(root, csv, options.clips)
        model = load_encoder(SOURCE, context=CONTEXT)
        plain_loop(files[:1], model, work / "warm-up")
        for turn in range(options.rounds):
            plain_s = plain_loop(files, model, work / f"plain-{turn}")
            ours_s = flcache_encode(files, model, work / f"flcache-{turn}")
            print(
                f"round {turn}: plain loop {plain_s:.1f} s ({len(files) / plain_s:.2f} clips/s), "
                f"flcache {ours_s:.1f} s ({len(files) / ours_s:.2f} clips/s), ratio {plain_s / ours_s:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
