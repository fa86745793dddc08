"""Where shard tasks run."""

from flcache.engines import local
from flcache.engines.calibration import calibrate
from flcache.engines.figures import EncoderTimes
from flcache.engines.job import ClipDone, ClipFailed, EncodeJob, Event, ShardCommitted, ShardTask

__all__ = [
    "ClipDone",
    "ClipFailed",
    "EncodeJob",
    "EncoderTimes",
    "Event",
    "ShardCommitted",
    "ShardTask",
    "calibrate",
    "local",
]
