"""Headers that durations are read from: a file that FFmpeg never comes back from ends no run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from flcache.config import load_config
from flcache.pipelines.setup.clips import read_split

CLUSTER = b"\x1f\x43\xb6\x75"


def write(path: Path) -> None:
    with av.open(str(path), "w", format="matroska") as sink:
        stream: Any = sink.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(32):
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        sink.mux(stream.encode(None))


def test_a_header_without_an_end_costs_one_video_its_duration(tmp_path: Path) -> None:
    for name in ("good.mkv", "endless.mkv", "other.mkv"):
        write(tmp_path / name)
    header = (tmp_path / "endless.mkv").read_bytes()
    (tmp_path / "endless.mkv").write_bytes(header[: header.index(CLUSTER)])
    os.truncate(tmp_path / "endless.mkv", 2**40)  # sparse: the first cluster is searched for in zeros
    (tmp_path / "list.txt").write_text("good.mkv 0\nendless.mkv 0\nother.mkv 1\n")
    overrides = [
        f"dataset.root={tmp_path}",
        f"dataset.train={tmp_path / 'list.txt'}",
        "clip.frames=8",
        "clip.fps=4",
        "clip.clips_per_video=null",
        "encode.decode_timeout_s=1",
    ]
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    config = load_config(tmp_path / "config.yaml", overrides)
    start = time.monotonic()
    split = read_split(config, "train")
    assert time.monotonic() - start < 60
    assert split.clips["video"].value_counts().to_dict() == {"good.mkv": 2, "endless.mkv": 1, "other.mkv": 2}
