"""python tests/benchmarks/predictor_step.py [--preset small] [--batch 1] [--steps 5]

One training step of `causal` against the same transformer of plain `torch.nn` modules (learned positions instead of
rotary ones, one block-causal mask), in turns on the same latents of a V-JEPA 2 ViT-L; then the peak memory of a fresh
process against what `training_memory_bytes` says. Prints one JSON line; exits 1 if either misses.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from flcache.batch import LatentBatch
from flcache.predictor import PRESETS, PredictorOptions, build_predictor, training_memory_bytes
from flcache.training import Objective, TrainingOptions, build_optimiser
from flcache.training.objective import prediction_loss

LATENT_SHAPE = (8, 16, 16, 1024)
MOST_OFF = 0.2
Shape = tuple[int, int, int, int]
Loss = Callable[[LatentBatch], Tensor]


class PlainPredictor(nn.Module):
    """Next steps as anyone would first write them."""

    def __init__(self, preset: str) -> None:
        super().__init__()
        shape = PRESETS[preset]
        steps, height, width, channels = LATENT_SHAPE
        tokens = (steps - 1) * height * width
        layer = nn.TransformerEncoderLayer(
            shape.width, shape.heads, shape.mlp_width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.embed = nn.Linear(channels, shape.width)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, shape.width))
        self.encoder = nn.TransformerEncoder(layer, shape.depth, nn.LayerNorm(shape.width), enable_nested_tensor=False)
        self.head = nn.Linear(shape.width, channels)
        step = torch.arange(tokens) // (height * width)
        self.register_buffer("mask", step[:, None] < step[None])

    def forward(self, latents: Tensor) -> Tensor:
        tokens = self.embed(latents.flatten(1, 3)) + self.positions
        change: Tensor = self.head(self.encoder(tokens, mask=self.mask))
        return latents + change.unflatten(1, latents.shape[1:4])


def ours(preset: str, latent_shape: tuple[int, int, int, int] = LATENT_SHAPE) -> tuple[nn.Module, Loss]:
    predictor = build_predictor(PredictorOptions(preset=preset), latent_shape)
    boundaries, objective = range(1, latent_shape[0]), Objective("l1", "raw", 1, (1.0,))
    return (
        predictor,
        lambda batch: prediction_loss(predictor.forecasts(batch, boundaries, 1), batch, boundaries, objective).loss,
    )


def plain(preset: str) -> tuple[nn.Module, Loss]:
    predictor = PlainPredictor(preset)
    return predictor, lambda batch: (predictor(batch.latents[:, :-1]) - batch.latents[:, 1:]).abs().mean()


def stepper(model: nn.Module, loss: Loss, batch: LatentBatch) -> Callable[[], float]:
    """A function that makes one training step and returns its seconds."""
    optimiser = build_optimiser({"model": model}, TrainingOptions(learning_rate=1e-4))

    def step() -> float:
        started = time.perf_counter()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return time.perf_counter() - started

    return step


def a_batch(count: int, latent_shape: Shape = LATENT_SHAPE) -> LatentBatch:
    latents = torch.randn(count, *latent_shape)
    times = torch.arange(latent_shape[0]).expand(count, -1) / 2
    valid = torch.ones(count, latent_shape[0], dtype=torch.bool)
    return LatentBatch(latents, latents, times, valid, tuple(map(str, range(count))), 4)


def peak_increase_bytes(preset: str, count: int) -> int:
    """By how much two training steps raise the memory of this process, once a tiny one has loaded all libraries."""
    batch, tiny = a_batch(count), (4, 2, 2, 8)
    stepper(*ours("tiny", tiny), a_batch(1, tiny))()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    step = stepper(*ours(preset), batch)
    for _ in range(2):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="only print the measured bytes")
    arguments = parser.parse_args()
    if arguments.memory:
        print(peak_increase_bytes(arguments.preset, arguments.batch))
        return
    command = [sys.executable, __file__, "--memory", "--preset", arguments.preset, "--batch", str(arguments.batch)]
    measured = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    options = PredictorOptions(preset=arguments.preset)
    stated = training_memory_bytes(options, LATENT_SHAPE, batch_size=arguments.batch, rollout_steps=1)
    batch = a_batch(arguments.batch)
    steppers = {"flcache": stepper(*ours(arguments.preset), batch), "plain": stepper(*plain(arguments.preset), batch)}
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(arguments.steps + 1):
        for name, step in steppers.items():
            seconds[name].append(step())
    medians = {name: round(statistics.median(values[1:]), 3) for name, values in seconds.items()}
    print(json.dumps({"step_s": medians, "memory_bytes": {"measured": measured, "stated": stated}}))
    if medians["flcache"] > medians["plain"] or abs(stated / measured - 1) > MOST_OFF:
        sys.exit("slower than plain torch.nn, or memory stated too far off")


if __name__ == "__main__":
    main()
