"""The baselines that a configuration asks for, fitted to its training clips."""

from __future__ import annotations

import sys
from itertools import islice

import torch

from flcache.config import Config
from flcache.encoder import load_own_predictor
from flcache.errors import EncoderError
from flcache.evaluation import Predict, Processes, fit_baselines
from flcache.training import WorldModel

from .source import LatentSource, Reading, latent_batches, open_source


@torch.no_grad()
def fitted_baselines(
    config: Config, model: WorldModel, beside: LatentSource, device: str, processes: Processes
) -> dict[str, Predict]:
    """Every baseline, fitted to the first `evaluation.baseline_clips` training clips as latents of `model`.

    `beside` is the source that is evaluated, as `open_source` takes it.
    """
    options = config.evaluation
    batch_size = min(options.batch_size, options.baseline_clips)
    share = range(processes.rank, options.baseline_clips // batch_size, processes.count)
    reading = Reading("train", batch_size, False, processes.rank, processes.count)
    with open_source(config, reading, device=device, beside=beside) as source:
        own = _own_predictor(config, source, model, device)
        fitted = fit_baselines(
            islice(latent_batches(model, source, device), len(share)),
            seen_until=source.seen_until,
            ridge_steps=options.ridge_steps,
            horizons=options.horizons,
            allow_leak=config.allow_leak,
            processes=processes,
        )
        return fitted | own


def _own_predictor(config: Config, source: LatentSource, model: WorldModel, device: str) -> dict[str, Predict]:
    """The checkpoint's own predictor; empty if it has none, or if the latents come from another encoder."""
    if not config.evaluation.own_predictor or not config.encoder.name or config.encoder_trainable:
        return {}
    try:
        found = load_own_predictor(config.encoder, source.hard, model.statistics, device)
    except EncoderError as error:
        print(f"without the baseline own_predictor (evaluation.own_predictor=false): {error}", file=sys.stderr)
        return {}
    return {"own_predictor": found} if found else {}
