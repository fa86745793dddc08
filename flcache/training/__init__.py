"""Training of a predictor, and of its encoder where that is unfrozen."""

from typing import TYPE_CHECKING

from flcache.lazy import load_on_demand

if TYPE_CHECKING:
    from flcache.training.checkpoint import (
        RunRecord,
        agreed_checkpoint,
        chosen_checkpoint,
        latest_checkpoint,
        open_checkpoint,
    )
    from flcache.training.log import check_trackers, read_metrics
    from flcache.training.loop import Run, Source
    from flcache.training.objective import legal_training_boundaries
    from flcache.training.optimiser import build_optimiser, learning_rate_schedule, parameter_lines
    from flcache.training.options import Augmentation, Objective, TrainingOptions
    from flcache.training.sharding import shard
    from flcache.training.sources import VideoSource
    from flcache.training.state import load_weights
    from flcache.training.validation import Validate, Validation
    from flcache.training.world_model import WorldModel
else:
    __getattr__ = load_on_demand(__name__, __file__)

__all__ = [
    "Augmentation",
    "Objective",
    "Run",
    "RunRecord",
    "Source",
    "TrainingOptions",
    "Validate",
    "Validation",
    "VideoSource",
    "WorldModel",
    "agreed_checkpoint",
    "build_optimiser",
    "check_trackers",
    "chosen_checkpoint",
    "latest_checkpoint",
    "learning_rate_schedule",
    "legal_training_boundaries",
    "load_weights",
    "open_checkpoint",
    "parameter_lines",
    "read_metrics",
    "shard",
]
