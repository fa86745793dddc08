"""The engine `local`: shard tasks one after the other, in this process and its decode workers.

Several runs of the same tasks share them: a shard that another run is writing is left to it, and looked at again when
the others are done, since that run may have been killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

from flcache.cache import ShardBusy
from flcache.encoder import LatentVideoModel
from flcache.engines.job import EncodeJob, Event, ShardTask
from flcache.engines.stages import run_task
from flcache.videos import decode_planned

_LOOK_AGAIN_S = 0.2


def run(
    job: EncodeJob,
    tasks: Iterable[ShardTask],
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    model: LatentVideoModel | None = None,
) -> None:
    """Encode and commit every task of `job`, telling `on_event` of each clip and shard.

    Returns when all of them are committed, by this run or by another. `model` is the job's encoder where it is loaded
    already. Bad clips are recorded and left out; raises CacheError where writing fails.
    """
    model = model or job.load_model()
    with job.open_pool() as pool:
        decode = partial(decode_planned, pool, job.open_folder())
        while True:
            busy = []
            for task in tasks:
                try:
                    run_task(job, task, model, decode, on_event)
                except ShardBusy:
                    busy.append(task)
            if not busy:
                return
            tasks = busy
            time.sleep(_LOOK_AGAIN_S)
