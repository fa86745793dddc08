"""Shard tasks on a Ray cluster. Videos, cache and encoder must be reachable from every node by the same paths.

Ray gives each task its CPUs and GPUs, and runs it again elsewhere when its process or its node dies. Commits alone say
what is done, so other runs may encode the same cache at the same time.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from flcache.engines import local
from flcache.engines.cores import available_cores
from flcache.engines.figures import EncoderTimes, together
from flcache.engines.job import EncodeJob, Event, ShardTask
from flcache.engines.options import RayOptions
from flcache.errors import ConfigError

RETRIES = 3
"""Times that a task whose process or node died is run again."""
_TASKS_PER_SLOT = 2
"""Tasks that wait for each one that can run; the others are not sent yet."""


def run(
    job: EncodeJob,
    tasks: Iterable[ShardTask],
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    options: RayOptions,
    address: str | None = None,
    on_notice: Callable[[str], None] = lambda notice: None,
) -> EncoderTimes:
    """Encode and commit every task of `job` on the cluster at `address`; without one Ray looks for a cluster, and
    starts one on this machine if there is none.

    The events of a shard come together, once it is committed. `on_notice` is told if no node has what a task needs: a
    cluster that grows may get one. Raises CacheError where writing fails.
    """
    ray = _ray()
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
    if not fits(options, ray.nodes()):
        on_notice(
            f"no node of the Ray cluster has the {options.cpus} CPUs and {options.gpus:g} GPUs of a task: waiting for "
            'one to join. "ray status" shows the nodes; encode.ray.cpus and encode.ray.gpus ask for less'
        )
    encode = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=RETRIES)(_encode)
    shared, waiting = ray.put(job), iter(tasks)
    times: list[EncoderTimes] = []
    sent: deque[Any] = deque()
    while True:
        while len(sent) < _TASKS_PER_SLOT * _slots(ray, options) and (task := next(waiting, None)) is not None:
            sent.append(encode.remote(shared, task))
        if not sent:
            return together(times)
        [done], rest = ray.wait(list(sent), num_returns=1)
        sent = deque(rest)
        events, spent = _result(ray, done)
        times.append(spent)
        for event in events:
            on_event(event)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError('--engine ray: Ray is not installed; pip install "flcache[ray]"') from None
    return ray


def fits(options: RayOptions, nodes: Iterable[Mapping[str, Any]]) -> bool:
    """Whether one of `nodes`, as `ray.nodes()` lists them, is large enough for a task."""
    return any(
        node["Alive"]
        and node["Resources"].get("CPU", 0) >= options.cpus
        and node["Resources"].get("GPU", 0) >= options.gpus
        for node in nodes
    )


def _slots(ray: Any, options: RayOptions) -> int:
    """Tasks that the cluster can run at once now; it may grow and shrink."""
    has = ray.cluster_resources()
    slots = has.get("CPU", 0) // options.cpus
    if options.gpus:
        slots = min(slots, has.get("GPU", 0) // options.gpus)
    return max(1, int(slots))


def _result(ray: Any, done: Any) -> tuple[list[Event], EncoderTimes]:
    """Raises the task's own error, as if it had run here."""
    try:
        found: tuple[list[Event], EncoderTimes] = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return found


def _encode(job: EncodeJob, task: ShardTask) -> tuple[list[Event], EncoderTimes]:
    """What a task does, in a process that keeps its encoder for the next one."""
    if torch.cuda.is_available():  # Ray shows each task its own GPUs only
        job = replace(job, device="cuda")
    else:
        job = replace(job, device="cpu")
        torch.set_num_threads(max(1, min(available_cores(), job.decode_workers)))
    events: list[Event] = []
    content = pickle.dumps(job)
    digest = hashlib.sha256(content).digest()
    times = local.run(job, [task], events.append, load_model=lambda: _model(digest, content))
    return events, times


@lru_cache(maxsize=1)
def _model(_digest: bytes, content: bytes) -> Any:
    job: EncodeJob = pickle.loads(content)  # pickled a moment ago by `_encode`
    return job.load_model()
