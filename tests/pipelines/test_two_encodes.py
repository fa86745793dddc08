"""Two runs of one encode share its shards, each encoded once, and what one leaves when it is killed the other does."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from forked import Forked, command_line, fork_context
from small_run import shards_of
from trees import tree

from flcache.cache import LatentCache
from flcache.engines import ClipDone, EncodeJob, Event, ShardCommitted, ShardTask, local

Queue = multiprocessing.SimpleQueue


@pytest.fixture
def content(job: EncodeJob, tasks: list[ShardTask]) -> bytes:
    """The pickled job and its tasks."""
    return pickle.dumps((job, tasks))


def share(content: bytes, together: Barrier, told: Queue[tuple[int, int]], dies: bool) -> None:
    """Encode what is missing, and tell how many clips and shards were encoded here and how many by another."""
    job, tasks = pickle.loads(content)
    model = job.load_model()
    clips, others = 0, 0

    def count(event: Event) -> None:
        nonlocal clips, others
        clips += isinstance(event, ClipDone)
        others += event.commit.clips if getattr(event, "by_another", False) else 0
        if dies and isinstance(event, ShardCommitted) and not event.by_another:
            os.kill(os.getpid(), signal.SIGKILL)

    together.wait()
    local.run(job, tasks, count, load_model=lambda: model)
    told.put((clips, others))


def run_together(content: bytes, *dies: bool) -> list[tuple[int, int]]:
    """What each run told that was not killed."""
    context = fork_context()
    together, told = context.Barrier(len(dies)), context.SimpleQueue()
    runs = [context.Process(target=share, args=(content, together, told, dying)) for dying in dies]
    for run in runs:
        run.start()
    for run in runs:
        run.join(timeout=240)
        run.kill()
    assert [run.exitcode for run in runs] == [-signal.SIGKILL if dying else 0 for dying in dies]
    return [told.get() for dying in dies if not dying]


def test_two_runs_share_the_work_and_give_the_bytes_of_one(content: bytes, encoded: Path, tmp_path: Path) -> None:
    told = run_together(content, False, False)
    clips = len(LatentCache(encoded.parent / "cache"))
    assert sum(here for here, _ in told) == clips, "a clip was encoded twice, or by nobody"
    assert all(0 < here < clips for here, _ in told), "one did everything"
    assert [here + others for here, others in told] == [clips, clips], "progress did not reach its end"
    assert shards_of(tmp_path / "cache") == shards_of(encoded.parent / "cache")


def test_what_a_killed_run_leaves_is_done_by_the_other(content: bytes, encoded: Path, tmp_path: Path) -> None:
    [(here, others)] = run_together(content, True, False)  # it dies with one shard committed, and others claimed
    clips = len(LatentCache(encoded.parent / "cache"))
    assert here + others == clips and others == 6
    assert shards_of(tmp_path / "cache") == shards_of(encoded.parent / "cache")


def test_two_commands_at_once_both_finish(config_file: Path, encoded: Path) -> None:
    """From nothing: spec and plan are made at once, too."""
    runs = [Forked(command_line, "encode", "--config", config_file) for _ in range(2)]
    results = [run.wait() for run in runs]
    assert [result.returncode for result in results] == [0, 0], results
    assert all("24 clips of 24 cached" in result.stdout for result in results)
    assert tree(config_file.parent / "cache") == tree(encoded.parent / "cache")
