"""The engine `local`: shard tasks one after the other, in this process and its decode workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flcache.encoder import LatentVideoModel
from flcache.engines.job import EncodeJob, Event, ShardTask
from flcache.engines.stages import run_task


def run(
    job: EncodeJob,
    tasks: Iterable[ShardTask],
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    model: LatentVideoModel | None = None,
) -> None:
    """Encode and commit every task of `job`, telling `on_event` of each clip and shard.

    `model` is the job's encoder where it is loaded already. Bad clips are recorded and left out; raises CacheError
    where writing fails.
    """
    model = model or job.load_model()
    with job.open_pool() as pool:
        for task in tasks:
            run_task(job, task, model, pool, on_event)
