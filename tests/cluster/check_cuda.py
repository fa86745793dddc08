"""python tests/cluster/check_cuda.py [NAME ...]: encode, train and evaluate on a real GPU, beside the same on the CPU.

Encoding twice, or with a kill, gives equal bytes; latents and losses are those of the CPU up to rounding; training
stops on SIGTERM and goes on as if it had not, but for last bits; no step waits for the device but where it logs. All
checks are run, or those named, whatever became of the others; exits 1 if one of them failed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import yaml
from safetensors.numpy import load_file

from flcache.cache import LatentCache
from flcache.config import load_config
from flcache.predictor import PREDICTORS
from flcache.videos import write_dataset

ENCODER = {
    "model_type": "vjepa2",
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "crop_size": 64,
    "patch_size": 8,
    "frames_per_clip": 16,
    "pred_hidden_size": 48,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}
STEPS = 40
CLI = [sys.executable, "-m", "flcache.pipelines.cli"]
FSDP = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "num_machines": 1,
    "num_processes": 1,
    "mixed_precision": "no",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "Block",
    },
}
Check = Callable[[Path], str]
"""Takes the folder of all checks and tells what it found."""
PHASES: list[list[Check]] = [[], []]
"""Checks of a phase run side by side; those of the second one use what the first has trained."""


def check(phase: int) -> Callable[[Check], Check]:
    def note(function: Check) -> Check:
        PHASES[phase].append(function)
        return function

    return note


def main(names: Sequence[str]) -> None:
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {len(os.sched_getaffinity(0))} cores", flush=True
    )
    os.environ["OMP_NUM_THREADS"] = "2"  # many processes side by side
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_config(folder)
        encode = [("float32", "float32", "auto"), ("cpu", "float32", "cpu"), ("auto", "auto", "auto")]
        side_by_side(
            command(folder, "encode", f"cache.dir={folder / name}", f"encoder.dtype={dtype}", f"encode.device={device}")
            for name, dtype, device in encode
        )
        passed = []
        for phase in PHASES:
            chosen = [function for function in phase if not names or function.__name__ in names]
            with ThreadPoolExecutor(max(1, len(chosen))) as threads:
                passed += threads.map(lambda function: passes(function, folder), chosen)
    sys.exit(not all(passed))


def passes(function: Check, folder: Path) -> bool:
    began, passed = time.monotonic(), True
    try:
        found = f"ok    {function.__name__}: {function(folder)}"
    except Exception:
        passed, found = False, f"FAIL  {function.__name__}: {traceback.format_exc()}"
    print(f"{found} [{time.monotonic() - began:.0f} s]", flush=True)
    return passed


def write_config(folder: Path) -> None:
    videos = folder / "videos"
    write_dataset(videos, train_videos=48, val_videos=12, frames=48, size=96)
    content = {
        "dataset": {"root": str(videos), "train": str(videos / "train.csv"), "val": str(videos / "val.csv")},
        "clip": {"frames": 16, "fps": 8.0},
        "encoder": {"architecture": ENCODER, "processor": {"crop_size": 64}},
        "encode": {"batch_size": 4, "decode_workers": 2, "context": "step"},
        "cache": {"codec": "float32", "shard_bytes": 6 * 8 * 8 * 8 * 192 * 4},
        "predictor": {"preset": "tiny", "overrides": {"merge": 2}},
        "training": {"steps": STEPS, "batch_size": 4, "warmup_steps": 5, "checkpoint_every": 20, "log_every": 1},
        "evaluation": {"horizons": 4},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def command(folder: Path, stage: str, *arguments: object) -> list[str]:
    return [*CLI, stage, "--config", str(folder / "config.yaml"), *map(str, arguments)]


def flcache(folder: Path, stage: str, *arguments: object) -> str:
    """What it printed, both streams. Raises RuntimeError if it failed."""
    return run(command(folder, stage, *arguments))


def run(arguments: list[str]) -> str:
    result = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
    if result.returncode:
        raise RuntimeError(f"{' '.join(arguments[2:])} exited {result.returncode}:\n{result.stdout[-3000:]}")
    return result.stdout


def side_by_side(commands: Iterable[list[str]]) -> list[str]:
    """What each printed."""
    started = list(commands)
    with ThreadPoolExecutor(len(started)) as threads:
        return list(threads.map(run, started))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def distance(one: Path, other: Path) -> float:
    """The largest relative L2 distance of two clips."""
    largest = 0.0
    for mine, its in zip(LatentCache(one), LatentCache(other), strict=True):
        assert mine.clip_id == its.clip_id
        largest = max(largest, float(np.linalg.norm(mine.latents - its.latents) / np.linalg.norm(its.latents)))
    return largest


def losses(run_dir: Path) -> np.ndarray:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return np.array([line["loss"] for line in lines if "loss" in line])


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = load_file(run_dir / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")
    return found


@check(0)
def doctor(folder: Path) -> str:
    return "\n" + run([*CLI, "doctor"])


@check(0)
def encoding_twice_gives_equal_bytes(folder: Path) -> str:
    flcache(folder, "encode", f"cache.dir={folder / 'again'}", "encoder.dtype=float32")
    assert tree(folder / "float32") == tree(folder / "again")
    return f"{len(LatentCache(folder / 'float32'))} clips"


@check(0)
def latents_are_those_of_the_cpu(folder: Path) -> str:
    found, half = (distance(folder / name, folder / "cpu") for name in ("float32", "auto"))
    # torchvision resizes bytes in integers on a CPU, in floats on a GPU: 0.006 of it is that rounding.
    assert found < 2e-2 and half < 3e-2, (found, half)
    return f"relative distance {found:.1e}, of bfloat16 {half:.1e}"


@check(0)
def a_killed_encode_is_finished_with_equal_bytes(folder: Path) -> str:
    arguments = command(folder, "encode", f"cache.dir={folder / 'killed'}", "encoder.dtype=float32")
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((folder / "killed" / "commits").glob("*")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = len(list((folder / "killed" / "commits").glob("*")))
    run(arguments)
    assert tree(folder / "killed") == tree(folder / "float32")
    return f"killed with {done} shards committed"


@check(0)
def a_compiled_encoder_gives_nearly_the_same(folder: Path) -> str:
    flcache(folder, "encode", f"cache.dir={folder / 'compiled'}", "encoder.dtype=float32", "encode.compile=true")
    found = distance(folder / "compiled", folder / "float32")
    assert found < 1e-3, found
    return f"relative distance {found:.1e}"


@check(0)
def an_audit_passes(folder: Path) -> str:
    return run([*CLI, "audit", str(folder / "auto"), "--config", str(folder / "config.yaml")]).splitlines()[-1]


@check(0)
def losses_are_those_of_the_cpu(folder: Path) -> str:
    common = (f"cache.dir={folder / 'float32'}", "encoder.dtype=float32", "training.precision=no")
    side_by_side(
        command(folder, "train", *common, f"training.dir={folder / f'train-{device}'}", f"training.device={device}")
        for device in ("cpu", "cuda")
    )
    one, other = losses(folder / "train-cuda"), losses(folder / "train-cpu")
    found = np.abs(one / other - 1)
    assert len(one) == STEPS and found[0] < 1e-4 and found.max() < 2e-2, found
    return f"first {found[0]:.1e}, at most {found.max():.1e}"


@check(1)
def live_frozen_losses_are_those_of_the_cache(folder: Path) -> str:
    common = (f"cache.dir={folder / 'float32'}", "encoder.dtype=float32", "training.precision=no")
    flcache(folder, "train", *common, f"training.dir={folder / 'live'}", "training.source=videos")
    found = np.abs(losses(folder / "live") / losses(folder / "train-cuda") - 1)
    assert found[0] < 1e-5, found
    return f"first {found[0]:.1e}, at most {found.max():.1e}"


@check(0)
def training_twice_gives_nearly_equal_weights(folder: Path) -> str:
    common = (f"cache.dir={folder / 'auto'}", "training.validate_every=20", "training.ema=0.99")
    told, _ = side_by_side(
        command(folder, "train", *common, f"training.dir={folder / name}") for name in ("whole", "repeated")
    )
    one, other = weights(folder / "whole"), weights(folder / "repeated")
    found = max(float(np.abs(one[name] - other[name]).max()) for name in one)
    assert found < 1e-2, found
    return f"largest difference {found:.1e}; {told.splitlines()[-1]}"


@check(1)
def sigterm_and_resume_end_nearly_as_if_it_had_not_come(folder: Path) -> str:
    common = (f"cache.dir={folder / 'auto'}", "training.validate_every=20", "training.ema=0.99")
    arguments = command(folder, "train", *common, f"training.dir={folder / 'stopped'}")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = folder / "stopped" / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 10):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 143, (process.returncode, told[-2000:])
    stopped = sorted(path.name for path in (folder / "stopped" / "checkpoints").glob("step-*"))[-1]
    run([*arguments, "--resume"])
    one, other = weights(folder / "whole"), weights(folder / "stopped")
    found = max(float(np.abs(one[name] - other[name]).max()) for name in one)
    assert found < 1e-2, found
    return f"stopped at {stopped}; largest difference of weights {found:.1e}"


@check(1)
def what_was_trained_is_evaluated_exported_and_used(folder: Path) -> str:
    common = (f"cache.dir={folder / 'auto'}", f"training.dir={folder / 'whole'}", "training.ema=0.99")
    told = flcache(folder, "evaluate", *common)
    run([*CLI, "report", str(folder / "whole")])
    checkpoint = folder / "whole" / "checkpoints" / f"step-{STEPS:08d}"
    run([*CLI, "export", str(checkpoint), str(folder / "model")])
    videos = [str(path) for path in sorted((folder / "videos").rglob("*.mp4"))[:2]]
    run([*CLI, "predict", *videos, "--model", str(folder / "model"), "--out", str(folder / "predicted")])
    return "\n" + told


@check(0)
def an_encoder_trains_end_to_end(folder: Path) -> str:
    told = flcache(
        folder,
        "train",
        f"cache.dir={folder / 'unfrozen-cache'}",
        f"training.dir={folder / 'unfrozen'}",
        "training.source=videos",
        "encoder_trainable=true",
        "encoder.checkpoint_activations=true",
        "training.anti_collapse=sigreg",
        "training.validate_every=20",
    )
    loss = losses(folder / "unfrozen")
    assert np.isfinite(loss).all() and len(loss) == STEPS, loss
    return f"loss {loss[0]:.3f} to {loss[-1]:.3f}; {told.splitlines()[-1]}"


@check(0)
def every_predictor_trains(folder: Path) -> str:
    common = (f"cache.dir={folder / 'auto'}", "training.loss=l2")
    side_by_side(
        command(folder, "train", *common, f"training.dir={folder / kind}", f"predictor.kind={kind}")
        for kind in PREDICTORS
    )
    found = {kind: losses(folder / kind) for kind in PREDICTORS}
    assert all(np.isfinite(loss).all() for loss in found.values()), found
    return ", ".join(f"{kind} {loss[0]:.3f} to {loss[-1]:.3f}" for kind, loss in found.items())


@check(1)
def fsdp_gives_the_losses_of_one_process(folder: Path) -> str:
    (folder / "fsdp.yaml").write_text(yaml.safe_dump(FSDP), encoding="utf-8")
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "fsdp.yaml")]
    train = command(folder, "train", f"cache.dir={folder / 'float32'}", f"training.dir={folder / 'fsdp'}")
    launch = [*accelerate, "--module", *train[2:], "encoder.dtype=float32", "training.precision=no"]
    run(launch)
    found = np.abs(losses(folder / "fsdp") / losses(folder / "train-cuda") - 1)
    assert found[0] < 1e-4 and found.max() < 2e-2, found
    return f"first {found[0]:.1e}, at most {found.max():.1e}"


@check(0)
def a_step_waits_for_the_device_only_where_it_logs(folder: Path) -> str:
    """Counts what torch calls synchronising operations of the thread that trains, by their line."""
    from flcache.pipelines import train

    counts: dict[int, Counter[str]] = {}
    trains = threading.get_ident()

    def note(message: Warning | str, category: type[Warning], filename: str, line: int, *_: object) -> None:
        if "synchroniz" in str(message) and threading.get_ident() == trains:
            counts[steps][f"{filename}:{line}"] += 1

    for steps in (20, 60):
        counts[steps] = Counter()
        overrides = [f"cache.dir={folder / 'auto'}", f"training.dir={folder / f'syncs-{steps}'}"]
        overrides += [f"training.steps={steps}", "training.log_every=1000", "training.checkpoint_every=1000"]
        config = load_config(folder / "config.yaml", overrides)
        with warnings.catch_warnings(), patch("warnings.showwarning", note):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train.run(config)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    more = counts[60] - counts[20]
    told = ", ".join(f"{line} {count}" for line, count in counts[60].most_common(12))
    assert not more, f"40 further steps wait more often: {dict(more)}; all: {told}"
    return f"{sum(counts[60].values())} in a run of 20 steps and in one of 60"


if __name__ == "__main__":
    main(sys.argv[1:])
