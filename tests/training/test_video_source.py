"""Live clips: the order of a cache, exact resume, and bad clips left out by name, never replaced."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from flcache.cache import EpochSampler
from flcache.errors import DataError
from flcache.training import VideoSource
from flcache.videos import ClipRequest, DecodePool, PlannedClip, VideoFolder, read_annotations, write_dataset

REQUEST = ClipRequest(4, 0.0, (0.0, 0.125, 0.25, 0.375), None, "pad")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("videos")
    write_dataset(root, train_videos=9, val_videos=0, frames=8, size=32)
    folder = VideoFolder(root)
    return [path for video in read_annotations(root / "train.csv") if (path := folder.find(video.path))]


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, 60.0) as started:
        yield started


def source(
    paths: list[Path], pool: DecodePool, allowed: float = 0.5, rank: int = 0, world_size: int = 1
) -> VideoSource:
    clips = [PlannedClip(f"clip{k}", path.stem, str(path), None, k, REQUEST) for k, path in enumerate(paths)]
    sampler = EpochSampler(len(clips), batch_size=2, seed=3, rank=rank, world_size=world_size)
    return VideoSource(
        clips, VideoFolder(Path("/")), pool, sampler, context_steps=1, tubelet_size=2, max_failed_fraction=allowed
    )


def test_resume_continues_at_the_next_batch(paths: list[Path], pool: DecodePool) -> None:
    uninterrupted = source(paths, pool)
    whole = [batch for _ in range(2) for batch in uninterrupted]
    stopped = source(paths, pool)
    first = list(islice(stopped, 3))
    resumed = source(paths, pool)
    resumed.load_state_dict(stopped.state_dict())
    rest = [batch for _ in range(2) for batch in resumed]
    assert [batch.ids for batch in [*first, *rest]] == [batch.ids for batch in whole]
    for expected, found in zip(whole, [*first, *rest], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected.frames, found.frames, strict=True))
        torch.testing.assert_close(found.times[0], torch.tensor([0.0625, 0.3125]))


def test_bad_clips_are_left_out_by_name(paths: list[Path], pool: DecodePool, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    live = source([*paths[:-1], bad], pool)
    seen = {clip_id for _ in range(4) for batch in live for clip_id in batch.ids}
    assert seen == {f"clip{number}" for number in range(8)} and list(live.failures) == ["clip8"]
    with pytest.raises(DataError, match=r"1 of 9 clips cannot be decoded, clip8 first .*bad\.mp4"):
        strict = source([*paths[:-1], bad], pool, allowed=0.0)
        for _ in range(4):
            list(strict)


def test_a_process_whose_clips_all_fail_stays_at_the_position_of_the_others(
    paths: list[Path], pool: DecodePool, tmp_path: Path
) -> None:
    """It yields a batch of no clips, none of whose steps counts."""
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    share = next(EpochSampler(len(paths), batch_size=2, seed=3, rank=1, world_size=2).remaining()).tolist()
    mixed = [bad if number in share else path for number, path in enumerate(paths)]
    ranks = [source(mixed, pool, rank=rank, world_size=2) for rank in (0, 1)]
    batches = [next(iter(rank)) for rank in ranks]
    assert [len(batch) for batch in batches] == [2, 0]
    assert len(batches[1].frames) == 1 and not batches[1].valid.any()
    assert ranks[0].state_dict() == ranks[1].state_dict() != source(mixed, pool).state_dict()
