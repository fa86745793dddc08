"""Validation while training: skill on the first clips of the val split, over baselines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch.distributed
from accelerate import Accelerator

from flcache.config import Config
from flcache.evaluation import BASELINES, Processes, Sampling, skill_by_horizon
from flcache.training import Validate, Validation, WorldModel

from .baselines import fitted_baselines
from .running import as_trained
from .source import LatentSource, Reading, latent_batches, open_source


@contextmanager
def open_validation(
    config: Config, accelerator: Accelerator, model: WorldModel, beside: LatentSource
) -> Iterator[Validate | None]:
    """What measures `model` on the first `training.validate_clips` clips of the val split; None if none is asked for.

    The baselines that are fitted join for a cache alone, once: for live videos, 512 training clips would have to be
    encoded for them. `beside` is the source that is trained on. Call it on every process.
    """
    if config.training.validate_every is None:
        yield None
        return
    device, processes = str(accelerator.device), _processes(accelerator)
    predictor, precision = model.evaluated, as_trained(config.training.precision, device)
    most, batch_size = config.training.validate_clips, config.evaluation.batch_size
    reading = Reading("val", batch_size, False, processes.rank, processes.count, most)
    baselines = BASELINES
    if config.training.source == "cache":
        options = replace(config.evaluation, own_predictor=False)  # as large as an encoder
        baselines = fitted_baselines(replace(config, evaluation=options), model, beside, device, processes)
    sampling = None
    if predictor.generative:
        sampling = Sampling(precision(predictor.sample), config.evaluation.samples, config.seed)
    with open_source(config, reading, device=device, beside=beside) as source:

        def validate() -> Validation:
            skill = skill_by_horizon(
                precision(predictor.predict),
                latent_batches(model, source, device),
                horizons=config.evaluation.horizons,
                baselines=baselines,
                sampling=sampling,
                actions=predictor.num_actions > 0,
                device=device,
                processes=processes,
            )
            return Validation(skill)

        yield validate


def _processes(accelerator: Accelerator) -> Processes:
    if accelerator.num_processes == 1:
        return Processes()
    group = torch.distributed.new_group(backend="gloo")
    return Processes(accelerator.process_index, accelerator.num_processes, group)
