"""Videos in which nothing moves: skill is 0, not a number made of rounding."""

from __future__ import annotations

import pytest
import torch

from flcache.batch import ChannelStatistics, LatentBatch
from flcache.evaluation import evaluate
from flcache.predictor import PredictorOptions, build_predictor
from flcache.training import Objective, TrainingOptions, WorldModel, build_optimiser, learning_rate_schedule

T, H, W, D = 8, 2, 2, 8
STEPS = 60
OPTIONS = TrainingOptions(steps=STEPS, learning_rate=1e-3, warmup_steps=10)


def still_clips(count: int, seed: int, noise: float) -> LatentBatch:
    """The same step T times, but for what a lossy video and float16 leave of it."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(count, 1, H, W, D, generator=generator)
    latents = (step + noise * torch.randn(count, T, H, W, D, generator=generator)).half().float()
    times = torch.arange(T).expand(count, T) / 4
    return LatentBatch(latents, latents, times, torch.ones(count, T, dtype=torch.bool), ("",) * count, 4)


@pytest.mark.parametrize("kind", ["causal", "parallel", "cross_attention"])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_predictor_trained_on_static_videos_has_no_skill(kind: str, noise: float) -> None:
    torch.manual_seed(0)
    sizes = {"depth": 2, "width": 24, "heads": 2, "mlp_width": 48, "merge": 1}
    predictor = build_predictor(PredictorOptions(kind, "tiny", sizes), (T, H, W, D))
    statistics = ChannelStatistics(torch.zeros(D), torch.ones(D))
    model = WorldModel(predictor, statistics, boundaries=range(1, T), objective=Objective("l2", "raw", 4, (1.0,)))
    optimiser = build_optimiser({"model": model}, OPTIONS)
    schedule = learning_rate_schedule(optimiser, OPTIONS)
    for step in range(STEPS):
        model(still_clips(8, step, noise)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    held_out = [still_clips(32, STEPS, noise)]
    result = evaluate(predictor.predict, held_out, seen_until=list(range(T)), fingerprint="")
    assert [row.skill["copy_last"] for row in result.horizons] == pytest.approx([0.0] * 4, abs=0.02)
