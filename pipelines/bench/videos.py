"""Videos to measure with, where a user has given none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from flcache.config import Config
from flcache.videos.synthetic import draw_frames, encode_mp4

VIDEOS = 4
FPS, DRAWN, TIMES = 25, 50, 5
"""Frames a second; frames that are drawn, and shown forwards and backwards so many times."""
WIDTH, HEIGHT = 340, 256
"""As Kinetics is commonly stored: 10 seconds, short side 256."""
_X264_OPTIONS = {"crf": "23", "preset": "veryfast"}


def write_videos(config: Config, root: Path) -> Config:
    """The configuration with a dataset of videos that are made below `root`."""
    root.mkdir()
    above = (WIDTH - HEIGHT) // 2
    for number in range(VIDEOS):
        forwards = draw_frames(number, frames=DRAWN, size=WIDTH, fps=FPS)[:, above : above + HEIGHT]
        frames = np.concatenate([forwards[:: (-1) ** time] for time in range(TIMES)])
        (root / f"{number}.mp4").write_bytes(encode_mp4(frames, FPS, _X264_OPTIONS))
    (root / "train.csv").write_text("".join(f"{number}.mp4 {number}\n" for number in range(VIDEOS)))
    return replace(config, dataset=replace(config.dataset, root=str(root), train=str(root / "train.csv"), val=None))
