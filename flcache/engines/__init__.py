"""Where shard tasks run."""

from flcache.engines.calibration import calibrate
from flcache.engines.shard_task import ClipTask, ShardEncoder, ShardTask

__all__ = ["ClipTask", "ShardEncoder", "ShardTask", "calibrate"]
