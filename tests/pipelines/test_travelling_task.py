"""A job and its tasks, pickled, run in a process that loads its own encoder: the same bytes as here."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from forked import fork_context
from trees import tree

from flcache.engines import ClipDone, ClipFailed, EncodeJob, Event, ShardCommitted, ShardTask, local
from flcache.errors import SpecMismatch

Made = tuple[EncodeJob, list[ShardTask]]


@pytest.fixture
def made(job: EncodeJob, tasks: list[ShardTask], tmp_path: Path) -> Made:
    """A job into an empty cache, and its tasks, one with a video that is not there."""
    clips = tasks[-1].clips
    gone = replace(tasks[-1], clips=(replace(clips[0], video="gone"), *clips[1:]))
    return replace(job, cache=tmp_path / "empty"), [*tasks[:-1], gone]


def run_pickled(content: bytes, events: multiprocessing.SimpleQueue[Event]) -> None:
    job, tasks = pickle.loads(content)
    local.run(job, tasks, events.put)


def in_another_process(job: EncodeJob, tasks: list[ShardTask]) -> list[Event]:
    context = fork_context()
    events = context.SimpleQueue()
    process = context.Process(target=run_pickled, args=(pickle.dumps((job, tasks)), events))
    process.start()
    clips = sum(len(task.clips) for task in tasks)
    found = [events.get() for _ in range(clips + len(tasks)) if process.is_alive() or not events.empty()]
    process.join()
    assert process.exitcode == 0
    return found


def test_a_task_gives_the_same_bytes_in_another_process(made: Made, encoded: Path, tmp_path: Path) -> None:
    job, tasks = made
    here: list[Event] = []
    local.run(job, tasks, here.append)
    assert in_another_process(replace(job, cache=tmp_path / "other"), tasks) == here
    written = tree(tmp_path / "empty")
    assert tree(tmp_path / "other") == written
    reference = tree(encoded.parent / "cache")
    same = [name for name in written if f"{tasks[-1].split}-{tasks[-1].shard:06d}" not in name]
    assert len(same) >= 12 and all(written[name] == reference[name] for name in same)


def test_events_tell_of_every_clip_and_shard(made: Made) -> None:
    job, tasks = made
    events: list[Event] = []
    local.run(job, tasks, events.append)
    committed = [event.commit for event in events if isinstance(event, ShardCommitted)]
    assert [(commit.split, commit.shard) for commit in committed] == [(task.split, task.shard) for task in tasks]
    failures = [event.failure for event in events if isinstance(event, ClipFailed)]
    assert [(failure.stage, failure.reason) for failure in failures] == [("find", "no file")]
    told = [event.clip_id for event in events if isinstance(event, ClipDone)] + [failures[0].clip_id]
    assert sorted(told) == sorted(clip.clip_id for task in tasks for clip in task.clips)


def other_weights(job: EncodeJob) -> EncodeJob:
    return replace(job, encoder=replace(job.encoder, seed=1))


def other_processor(job: EncodeJob) -> EncodeJob:
    return replace(job, encoder=replace(job.encoder, processor={"image_mean": [0.0, 0.0, 0.0]}))


@pytest.mark.parametrize(("change", "field"), [(other_weights, "encoder.weights"), (other_processor, "processor")])
def test_a_machine_with_another_encoder_is_refused(
    made: Made, change: Callable[[EncodeJob], EncodeJob], field: str
) -> None:
    job, tasks = made
    with pytest.raises(SpecMismatch, match=field):
        local.run(change(job), tasks)
    assert not [path for path in Path(str(job.cache)).rglob("*") if path.is_file()]
