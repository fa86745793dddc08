"""Training of a predictor, and of its encoder where that is unfrozen."""

from typing import TYPE_CHECKING

from flcache.lazy import load_on_demand

if TYPE_CHECKING:
    from flcache.training.checkpoint import RunRecord, has_checkpoint, latest_checkpoint, read_record
    from flcache.training.log import read_metrics
    from flcache.training.loop import Run, Source
    from flcache.training.objective import counted_splits
    from flcache.training.optimiser import build_optimiser, count_parameters, parameter_table, warmup_cosine
    from flcache.training.options import Objective, TrainingOptions
    from flcache.training.sources import LiveClip, VideoSource
    from flcache.training.world_model import WorldModel
else:
    __getattr__ = load_on_demand(__name__, __file__)

__all__ = [
    "LiveClip",
    "Objective",
    "Run",
    "RunRecord",
    "Source",
    "TrainingOptions",
    "VideoSource",
    "WorldModel",
    "build_optimiser",
    "count_parameters",
    "counted_splits",
    "has_checkpoint",
    "latest_checkpoint",
    "parameter_table",
    "read_metrics",
    "read_record",
    "warmup_cosine",
]
