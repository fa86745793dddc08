"""A small dataset of real videos, a configuration over it, and one finished cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from small_run import small_config

from flcache.cache import LatentCache, create_or_check, read_plan, write_plan
from flcache.config import load_config
from flcache.engines import EncodeJob, ShardTask
from flcache.videos import planned_clips, write_dataset


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 6 validation videos, annotated."""
    root = tmp_path_factory.mktemp("videos")
    write_dataset(root, train_videos=24, val_videos=6, frames=16, size=32)
    return root


@pytest.fixture
def config_file(tmp_path: Path, videos: Path) -> Path:
    """A configuration over `videos` that keeps everything in `tmp_path`."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(videos, tmp_path)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def encoded(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """A configuration file whose cache is complete; nobody may change the cache."""
    return encode_into(tmp_path_factory.mktemp("encoded"), videos)


@pytest.fixture(scope="session")
def encoded_jointly(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """As `encoded`, with every clip encoded jointly: contexts have seen the future."""
    return encode_into(tmp_path_factory.mktemp("encoded_jointly"), videos, context="full")


def encode_into(folder: Path, videos: Path, **options: str) -> Path:
    from flcache.pipelines import encode

    content = small_config(videos, folder)
    content["encode"] |= options
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    encode.run(load_config(path))
    return path


@pytest.fixture
def job(encoded: Path, tmp_path: Path) -> EncodeJob:
    """Encodes what `encoded` holds once more, into a cache with its spec and plan and no shard."""
    config = load_config(encoded)
    cache = LatentCache(str(config.cache.dir))
    create_or_check(tmp_path / "cache", cache.spec.hard, cache.spec.soft)
    write_plan(tmp_path / "cache", read_plan(cache.path))
    return EncodeJob(
        cache=tmp_path / "cache",
        video_root=Path(str(config.dataset.root)),
        other_case={},
        spec=cache.spec,
        encoder=config.encoder,
        context=config.encode.context,
        device="cpu",
        decode_workers=1,
        decode_timeout_s=60.0,
        batch_size=int(config.encode.batch_size),
    )


@pytest.fixture
def tasks(job: EncodeJob) -> list[ShardTask]:
    """All that `job` has to do."""
    shards = read_plan(job.cache).groupby(["split", "shard"])
    return [ShardTask(split, int(shard), tuple(planned_clips(rows))) for (split, shard), rows in shards]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, encoded: Path) -> Path:
    """The `training.dir` of a run of `encoded`; nobody may change it."""
    from flcache.pipelines import train

    folder = tmp_path_factory.mktemp("trained") / "training"
    train.run(load_config(encoded, [f"training.dir={folder}"]))
    return folder


@pytest.fixture(autouse=True)
def new_accelerator() -> Iterator[None]:
    """Accelerate keeps the precision of its first use until the process ends."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
