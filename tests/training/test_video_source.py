"""Live clips: the order of a cache, exact resume, and bad clips left out by name, never replaced."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from flcache.cache import EpochSampler
from flcache.errors import DataError
from flcache.training import Augmentation, VideoSource
from flcache.training.augment import augmented
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
    paths: list[Path],
    pool: DecodePool,
    allowed: float = 0.5,
    rank: int = 0,
    world_size: int = 1,
    augment: Augmentation | None = None,
) -> VideoSource:
    clips = [PlannedClip(f"clip{k}", path.stem, str(path), None, k, REQUEST) for k, path in enumerate(paths)]
    sampler = EpochSampler(len(clips), batch_size=2, seed=3, rank=rank, world_size=world_size)
    return VideoSource(
        clips,
        VideoFolder(Path("/")),
        pool,
        sampler,
        context_steps=1,
        tubelet_size=2,
        max_failed_fraction=allowed,
        augment=augment,
    )


@pytest.mark.parametrize("augment", [None, Augmentation(crop=0.4, flip=True)], ids=["plain", "augmented"])
def test_resume_continues_at_the_next_batch(paths: list[Path], pool: DecodePool, augment: Augmentation | None) -> None:
    uninterrupted = source(paths, pool, augment=augment)
    whole = [batch for _ in range(2) for batch in uninterrupted]
    stopped = source(paths, pool, augment=augment)
    first = list(islice(stopped, 3))
    resumed = source(paths, pool, augment=augment)
    resumed.load_state_dict(stopped.state_dict())
    rest = [batch for _ in range(2) for batch in resumed]
    assert [batch.ids for batch in [*first, *rest]] == [batch.ids for batch in whole]
    for expected, found in zip(whole, [*first, *rest], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected.frames, found.frames, strict=True))
        torch.testing.assert_close(found.times[0], torch.tensor([0.0625, 0.3125]))


def clips_of(live: VideoSource) -> dict[str, torch.Tensor]:
    """The frames of an epoch by the name of the clip."""
    return {name: clip for batch in live for name, clip in zip(batch.ids, batch.frames, strict=True)}


def test_augmentation_is_one_for_a_clip_and_another_in_the_next_epoch(paths: list[Path], pool: DecodePool) -> None:
    """Whatever the number of processes. The crop keeps the aspect ratio and at least its part of the area."""
    whole = source(paths, pool, augment=Augmentation(crop=0.4, flip=True))
    epochs = [clips_of(whole), clips_of(whole)]
    ranks = [source(paths, pool, rank=rank, world_size=2, augment=whole.augment) for rank in (0, 1)]
    shared = clips_of(ranks[0]) | clips_of(ranks[1])
    both = shared.keys() & epochs[0].keys()
    assert len(both) >= 6 and all(torch.equal(shared[name], epochs[0][name]) for name in both)
    shapes = [[clip.shape for _, clip in sorted(epoch.items())] for epoch in epochs]
    assert shapes[0] != shapes[1] and len(set(shapes[0])) > 3
    for _, height, width, _ in shapes[0]:
        assert height == width and 0.4 * 32**2 * 0.9 <= height * width <= 32**2


def test_a_clip_is_cropped_and_mirrored_alike_in_all_frames() -> None:
    """Every pixel holds its place: rows rise by one, columns too or, where mirrored, they fall."""
    places = torch.stack(torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij"), dim=-1)
    frames = torch.cat((places, places[..., :1]), dim=-1).to(torch.uint8).expand(3, -1, -1, -1)
    mirrored, corners = 0, set()
    for number in range(60):
        clip = augmented(frames, Augmentation(crop=0.25, flip=True), seed=1, epoch=0, clip_id=f"clip{number}").int()
        assert torch.equal(clip[0], clip[1]) and torch.equal(clip[0], clip[2])
        rows, columns = clip[0, :, 0, 0], clip[0, 0, :, 1]
        falls = bool(columns[0] > columns[1])
        assert set(rows.diff().tolist()) == {1} and set(columns.diff().tolist()) == {-1 if falls else 1}
        mirrored += falls
        corners.add((int(rows[0]), int(columns.min())))
    assert 15 < mirrored < 45 and len(corners) > 40
    assert torch.equal(augmented(frames, Augmentation(crop=1.0), seed=1, epoch=0, clip_id="a"), frames)


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
