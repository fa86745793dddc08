"""Shard tasks one after the other, in this process and its decode workers.

Several runs share the same tasks: a run skips a shard that another is writing, and tries it again after all others, in
case that run was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

from flcache.encoder import LatentVideoModel
from flcache.engines.figures import EncoderTimes, together
from flcache.engines.job import EncodeJob, Event, ShardTask
from flcache.engines.stages import ShardEncoder
from flcache.videos import DecodePool, VideoFolder, decode_planned

_LOOK_AGAIN_S = 0.2


def run(
    job: EncodeJob,
    tasks: Iterable[ShardTask],
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    load_model: Callable[[], LatentVideoModel] | None = None,
) -> EncoderTimes:
    """Encode and commit every task of `job`, calling `on_event` for each clip and shard, in one thread at a time.

    Returns when all of them are committed, by this run or by another. `load_model` gives the job's encoder, and is
    called while the first clips are decoded; without it the job loads it. Failed clips are recorded and left out;
    raises CacheError where writing fails.
    """
    timeout_s, max_bytes = job.decode_timeout_s, job.max_clip_bytes
    with DecodePool(job.decode_workers, timeout_s, max_bytes=max_bytes, arrays=job.spec.row_widths) as pool:
        decode = partial(decode_planned, pool, VideoFolder(job.video_root, other_case=job.other_case))
        encoder = ShardEncoder(job, load_model or job.load_model, decode, pool.close, on_event)
        passes = []
        while True:
            tasks, times = encoder.run(tasks)
            passes.append(times)
            if not tasks:
                return together(passes)
            time.sleep(_LOOK_AGAIN_S)
