"""Training of a predictor, and of its encoder where that is unfrozen."""

from flcache.training.checkpoint import RunRecord, has_checkpoint, latest_checkpoint, open_checkpoint, read_record
from flcache.training.log import read_metrics
from flcache.training.loop import LoopOptions, Run, Source
from flcache.training.objective import Objective, legal_training_boundaries
from flcache.training.optimiser import build_optimiser, count_parameters, parameter_table, warmup_cosine
from flcache.training.sources import VideoSource
from flcache.training.state import load_weights
from flcache.training.world_model import WorldModel

__all__ = [
    "LoopOptions",
    "Objective",
    "Run",
    "RunRecord",
    "Source",
    "VideoSource",
    "WorldModel",
    "build_optimiser",
    "count_parameters",
    "has_checkpoint",
    "latest_checkpoint",
    "legal_training_boundaries",
    "load_weights",
    "open_checkpoint",
    "parameter_table",
    "read_metrics",
    "read_record",
    "warmup_cosine",
]
