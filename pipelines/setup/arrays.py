"""How wide the arrays of the videos' frames are, which a cache must know before the first video is decoded."""

from __future__ import annotations

from collections.abc import Sequence

from flcache.cache import TRAINING_SPLIT
from flcache.config import Config
from flcache.errors import DataError, DecodeError
from flcache.videos import VideoFolder, list_videos
from flcache.videos.frame_arrays import row_width
from flcache.videos.video_file import TarMember, VideoFile, at_hand

from .clips import disk_cache, list_of, video_root


def array_widths(config: Config) -> dict[str, int]:
    """Numbers a row of each of `dataset.arrays`, from the first training video that has them all."""
    dataset = config.dataset
    if not dataset.arrays:
        return {}
    annotations = list_of(config, TRAINING_SPLIT)
    videos = list_videos(annotations, dataset, TRAINING_SPLIT, disk_cache(config))
    folder = VideoFolder(video_root(config), (video.path for video in videos))
    problems = []
    for video in videos:
        if file := folder.find(video.path):
            try:
                return _widths(file, dataset.arrays)
            except DecodeError as error:
                problems.append(str(error))
    first = problems[0] if problems else "none of its videos is there"
    raise DataError(f"{annotations}: no video comes with dataset.arrays={list(dataset.arrays)}; {first}")


def _widths(file: VideoFile, names: Sequence[str]) -> dict[str, int]:
    if not isinstance(file, TarMember):
        return {name: row_width(file, name) for name in names}
    with at_hand(file) as here:
        return {name: row_width(here, name) for name in names}
