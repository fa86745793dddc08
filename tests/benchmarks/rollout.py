"""python tests/benchmarks/rollout.py [--preset small] [--grid 8] [--rounds 3]: what the key-value cache saves.

`causal` rolls 8 steps out of 8 steps of context, with its cache and by computing everything anew, in turns. Prints one
JSON line: seconds, ratio, and by how much the two differ at most.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flcache.predictor import PredictorOptions, build_predictor
from flcache.predictor.causal import CausalPredictor

CONTEXT, HORIZON, CHANNELS = 8, 8, 384


def anew(predictor: CausalPredictor, context: Tensor, times: Tensor) -> Tensor:
    """The rollout without a cache: every step computes all steps before it."""
    steps = context
    for known in range(CONTEXT, CONTEXT + HORIZON):
        predicted = predictor(steps, times[:, :known], times[:, 1 : known + 1])
        steps = torch.cat((steps, predicted[:, -1:]), dim=1)
    return steps[:, CONTEXT:]


def timed(roll_out: Callable[[], Tensor]) -> tuple[Tensor, float]:
    started = time.perf_counter()
    return roll_out(), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--grid", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    shape = (CONTEXT + HORIZON, arguments.grid, arguments.grid, CHANNELS)
    predictor = build_predictor(PredictorOptions(preset=arguments.preset), shape)
    nn.init.normal_(predictor.head.weight, std=0.02)  # a zero head would copy, however it came about
    latents, times = torch.randn(1, *shape), torch.arange(float(shape[0]))[None] / 4
    context = latents[:, :CONTEXT]
    ways: dict[str, Callable[[], Tensor]] = {
        "cached": lambda: predictor.predict(context, times[:, :CONTEXT], times[:, CONTEXT:]),
        "anew": lambda: anew(predictor, context, times),
    }
    with torch.inference_mode():
        runs = [{name: timed(way) for name, way in ways.items()} for _ in range(arguments.rounds)]
    seconds = {name: round(min(run[name][1] for run in runs), 3) for name in ways}
    differ = (runs[0]["cached"][0] - runs[0]["anew"][0]).abs().max().item()
    print(json.dumps({"seconds": seconds, "ratio": round(seconds["anew"] / seconds["cached"], 2), "differ": differ}))


if __name__ == "__main__":
    main()
