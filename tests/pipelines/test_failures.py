"""Every reason for which a clip can fail: real files, processes that really die, read back as a user reads them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
import yaml
from forked import Forked, command_line
from small_run import ENCODER, flcache, small_config

from flcache.errors import Reason
from flcache.videos import write_dataset

Make = Callable[[Path, bytes], object]

BROKEN_WORKER = """
import os, resource, signal
from pathlib import Path
import av

real_open = av.open

def broken_open(file, *arguments, **options):
    name = Path(file).name
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = hard
    if name.startswith("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("bug"):
        raise KeyError("a bug")
    if name.startswith("large"):
        soft = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + 400 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return real_open(file, *arguments, **options)

if "flcache.videos.decode_worker" in " ".join(os.sys.orig_argv):
    av.open = broken_open
"""
"""As sitecustomize.py: decode workers are killed, hit a bug, or run out of memory, by the name of the file."""


def coloured(path: Path, colour: tuple[int, int, int], size: int = 32, frames: int = 16) -> None:
    """A video of one exact colour, 8 frames a second."""
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = size, size, "bgr0"
        picture = np.broadcast_to(np.array(colour, dtype=np.uint8), (size, size, 3))
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def endless(path: Path) -> None:
    """A video whose next cluster is searched for in a sparse terabyte."""
    coloured(path, (0, 0, 0))
    os.truncate(path, 2**40)


def sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for number in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def two_sizes(path: Path) -> None:
    """A stream whose pictures shrink after a second."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream: Any = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        later: Any = av.CodecContext.create("mpeg2video", "w")
        later.width, later.height, later.pix_fmt, later.framerate = 32, 32, "yuv420p", 25
        later.time_base = Fraction(1, 25)
        for context, first, size in ((stream.codec_context, 0, 64), (later, 25, 32)):
            packets = []
            for number in range(first, first + 25):
                frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), 99, dtype=np.uint8), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                packets += context.encode(frame)
            for packet in [*packets, *context.encode(None)]:
                packet.stream = stream
                container.mux(packet)


def damaged(good: bytes) -> bytes:
    """With the middle of the pictures overwritten."""
    start = good.index(b"mdat") + 4
    length = int.from_bytes(good[start - 8 : start - 4], "big") - 8
    middle = start + length // 2
    return good[:middle] + b"\xff" * 300 + good[middle + 300 :]


ELSEWHERE = {"unknown", "no arrays", "wrong arrays"}
"""Reasons that need other settings; the last two: test_frame_arrays_encoded.py."""
FILES: dict[str, tuple[str, str, int, Make]] = {
    "gone": ("find", "no file", 1, lambda path, good: None),
    "link": ("find", "no file", 1, lambda path, good: path.symlink_to("nowhere")),
    "folder": ("decode", "not readable", 1, lambda path, good: path.mkdir()),
    "text": ("decode", "not a video", 1, lambda path, good: path.write_text("<html>404</html>" * 99)),
    "noise": ("decode", "not a video", 1, lambda path, good: path.write_bytes(np.random.default_rng(0).bytes(9999))),
    "audio": ("decode", "no video stream", 1, lambda path, good: sound(path)),
    "empty": ("decode", "cut off", 1, lambda path, good: path.touch()),
    "head": ("decode", "cut off", 1, lambda path, good: path.write_bytes(good[:1500])),
    "damaged": ("decode", "undecodable frame", 1, lambda path, good: path.write_bytes(damaged(good))),
    "sizes": ("decode", "size changes", 1, lambda path, good: two_sizes(path)),
    "short": ("decode", "too short", 1, lambda path, good: coloured(path, (0, 0, 0), frames=4)),
    "large": ("decode", "too large", 1, lambda path, good: coloured(path, (0, 0, 0), size=3072)),
    "pipe": ("decode", "not readable", 1, lambda path, good: os.mkfifo(path)),
    "waits": ("decode", "timed out", 2, lambda path, good: endless(path)),
    "dies": ("decode", "worker died", 2, lambda path, good: path.write_bytes(good)),
    "bug": ("decode", "our own error", 1, lambda path, good: path.write_bytes(good)),
    "red": ("encode", "not finite", 1, lambda path, good: coloured(path, (255, 0, 0))),
    "green": ("write", "out of range", 1, lambda path, good: coloured(path, (0, 255, 0))),
    "black": ("", "", 0, lambda path, good: coloured(path, (0, 0, 0))),
}
"""By name of the video: stage, reason and attempts, and what makes the file; black is the one that does not fail."""


def save_encoder(folder: Path) -> None:
    """An encoder whose latents are a million times too large; those of black stay 0."""
    import torch
    from transformers import AutoConfig, AutoModel

    from flcache.encoder import EncoderSource, load_encoder

    load_encoder(EncoderSource(architecture=ENCODER)).processor.save_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(**ENCODER))
    with torch.no_grad():
        model.encoder.layernorm.weight *= 1e6
        for name, bias in model.encoder.named_parameters():
            if name.endswith("bias"):
                bias.zero_()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def encoded_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The cache that one run makes of all these files, and what the run printed."""
    folder = tmp_path_factory.mktemp("failures")
    write_dataset(folder / "good", train_videos=1, val_videos=0, frames=16, size=64, fps=8)
    good = next((folder / "good").rglob("*.mp4")).read_bytes()
    (folder / "videos" / "all").mkdir(parents=True)
    rows = ["label,youtube_id,time_start,time_end,split"]
    for name, (_, _, _, make) in FILES.items():
        make(folder / "videos" / "all" / f"{name}_000000_000002.mp4", good)
        rows.append(f"all,{name},0,2,train")
    (folder / "videos" / "train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "sitecustomize.py").write_text(BROKEN_WORKER, encoding="utf-8")
    save_encoder(folder / "model")
    config = small_config(folder / "videos", folder)
    config["dataset"] |= {"val": None, "max_missing_fraction": 0.5}
    config["clip"] |= {"short": "drop"}
    config["encoder"] = {
        "name": str(folder / "model"),
        "processor": {"image_mean": [0.0, 0.0, 0.0], "image_std": [1e-45, 1.0, 1.0]},  # any red is infinite
    }
    config["encode"] |= {"max_failed_fraction": 1.0, "decode_workers": 2, "decode_timeout_s": 4.0}
    config["cache"] |= {"codec": "float16"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = ("encode", "--config", folder / "config.yaml")
    done = Forked(command_line, *command, environment={"PYTHONPATH": str(folder)}).wait()
    assert done.returncode == 0, done.stderr
    return folder / "cache", done


@pytest.fixture(scope="module")
def found(encoded_run: tuple[Path, subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    shown = flcache("inspect-cache", encoded_run[0], "--json")
    assert shown.returncode == 0, shown.stderr
    content: dict[str, Any] = json.loads(shown.stdout)
    return content


def failure_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    (failure,) = [row for row in found["failures"] if row["clip_id"].startswith(f"{name}_")]
    return dict(failure)


def test_only_what_must_fail_fails(found: dict[str, Any]) -> None:
    assert found["splits"]["train"]["clips"] == 1 and len(found["failures"]) == len(FILES) - 1
    assert {reason for _, reason, _, _ in FILES.values() if reason} == set(get_args(Reason)) - ELSEWHERE


@pytest.mark.parametrize("name", [name for name, (stage, *_) in FILES.items() if stage])
def test_a_failure_has_its_stage_reason_and_attempts(found: dict[str, Any], name: str) -> None:
    failure = failure_of(found, name)
    assert (failure["stage"], failure["reason"], failure["attempts"]) == FILES[name][:3], failure["message"]
    assert f"{name}_000000_000002" in failure["message"] and "\n" not in failure["message"]


def test_a_bug_says_what_and_where_and_asks_to_be_reported(
    found: dict[str, Any], encoded_run: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    message = failure_of(found, "bug")["message"]
    assert "KeyError: 'a bug' (videos/container.py:" in message and " in _open)" in message
    cache_dir, done = encoded_run
    for text in (done.stdout, flcache("inspect-cache", cache_dir).stdout):
        (line,) = [line for line in text.splitlines() if "our own error" in line]
        assert message in line and line.endswith("a bug of flcache, not of the video: please report it")
        assert text.count("please report it") == 1


def test_failures_are_grouped_with_a_count_and_an_example(
    found: dict[str, Any], encoded_run: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    groups = {(group["stage"], group["reason"]): group for group in found["failure_groups"]}
    assert sum(group["count"] for group in groups.values()) == len(found["failures"])
    assert groups["find", "no file"]["count"] == groups["decode", "cut off"]["count"] == 2
    cache_dir, done = encoded_run
    shown = flcache("inspect-cache", cache_dir).stdout
    for (stage, reason), group in groups.items():
        assert group["example"] in found["failures"]
        line = f"{group['count']} x {stage}: {reason}, such as {group['example']['clip_id']}"
        assert line in done.stdout and line in shown
