"""Several encoder processes on this machine: the bytes of one, also when one of them is killed."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from forked import fork_context
from small_run import flcache, shards_of
from trees import tree

from flcache.cache import LatentCache
from flcache.config import load_config
from flcache.engines import EncodeJob, Event, RayOptions, ShardCommitted, ShardTask, processes, ray
from flcache.errors import CacheError, ConfigError
from flcache.pipelines import encode
from flcache.pipelines.setup.engine import Engine


def encoders() -> list[BaseProcess]:
    return multiprocessing.active_children()


def killing(times: int) -> tuple[list[Event], Callable[[Event], None]]:
    """Events as they come; at each of the first `times` an encoder process is killed."""
    events: list[Event] = []

    def count(event: Event) -> None:
        events.append(event)
        if len(events) <= times:
            encoders()[0].kill()

    return events, count


def test_the_death_of_one_of_two_costs_nothing_but_time(
    job: EncodeJob, tasks: list[ShardTask], encoded: Path, tmp_path: Path
) -> None:
    events, count = killing(1)
    processes.run(job, tasks, count, devices=["cpu", "cpu"], context=fork_context())
    clips = len(LatentCache(encoded.parent / "cache"))
    assert shards_of(tmp_path / "cache") == shards_of(encoded.parent / "cache")
    committed = [event.commit.name for event in events if isinstance(event, ShardCommitted)]
    assert sorted(committed) == sorted({*committed}) and len(events) == clips + len(committed)
    assert not encoders()


def test_a_shard_that_kills_its_processes_ends_the_run(job: EncodeJob, tasks: list[ShardTask], tmp_path: Path) -> None:
    _, count = killing(1_000)
    with pytest.raises(CacheError, match=r"2 encoder processes died over shard train-000000, the last by SIGKILL"):
        processes.run(job, tasks[:1], count, devices=["cpu"], context=fork_context())
    assert not encoders()
    assert not [name for name in tree(tmp_path / "cache") if name.endswith(".tmp")]


def test_an_error_in_a_process_is_raised_here(job: EncodeJob, tasks: list[ShardTask]) -> None:
    """An encoder of other weights than the spec says, which only the process loads."""
    foreign = replace(job, encoder=replace(job.encoder, seed=1))
    with pytest.raises(CacheError, match=r"does not make its latents: encoder\.weights"):
        processes.run(foreign, tasks, devices=["cpu", "cpu"], context=fork_context())
    assert not encoders()


def test_the_command_takes_two_processes(config_file: Path, encoded: Path) -> None:
    result = flcache("encode", "--config", config_file, "encode.devices=2", "encode.decode_workers=2")
    assert result.returncode == 0, result.stderr
    assert "encoder busy" in result.stderr
    assert tree(config_file.parent / "cache") == tree(encoded.parent / "cache")


def test_ray_that_is_not_installed_is_one_line(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed; pip install \"flcache\[ray\]\""):
        encode.run(load_config(config_file), engine=Engine("ray"))


@pytest.mark.parametrize(
    ("cpus", "gpus", "alive", "fit"),
    [(8, 1, True, True), (8, 1, False, False), (7, 1, True, False), (8, 0, True, False)],
)
def test_a_node_that_is_too_small_for_a_task_is_noticed(cpus: int, gpus: int, alive: bool, fit: bool) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}}]
    assert ray.fits(RayOptions(cpus=8, gpus=1), nodes) is fit


def test_an_address_without_ray_is_a_wrong_usage(config_file: Path) -> None:
    result = flcache("encode", "--config", config_file, "--address", "auto")
    assert result.returncode == 2 and "give --engine ray too" in result.stderr
