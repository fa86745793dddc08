"""Where shard tasks run: `local` in this process, `processes` in several of this machine, `ray` on a cluster."""

from typing import TYPE_CHECKING

from flcache.lazy import load_on_demand

if TYPE_CHECKING:
    from flcache.engines.calibration import calibrate
    from flcache.engines.figures import EncoderTimes, together
    from flcache.engines.job import ClipDone, ClipFailed, EncodeJob, Event, ShardCommitted, ShardTask
    from flcache.engines.options import RayOptions
else:
    __getattr__ = load_on_demand(__name__, __file__)

__all__ = [
    "ClipDone",
    "ClipFailed",
    "EncodeJob",
    "EncoderTimes",
    "Event",
    "RayOptions",
    "ShardCommitted",
    "ShardTask",
    "calibrate",
    "together",
]
