"""Where shard tasks run."""

from flcache.engines import local
from flcache.engines.job import ClipDone, ClipFailed, EncodeJob, Event, ShardCommitted, ShardTask
from flcache.engines.stages import calibrate

__all__ = ["ClipDone", "ClipFailed", "EncodeJob", "Event", "ShardCommitted", "ShardTask", "calibrate", "local"]
