"""Synthetic videos: H.264 files of shapes that move straight and bounce off the walls, annotated as Kinetics is.

Each video depends only on the seed, the split, its index and the picture's size and timing, so a larger data set
contains the files of a smaller one. With actions, the largest shape of each is pushed about instead, and the others
stand still: a `.npz` beside the video says how. F frames of S x S pixels.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (225, 50, 45),
    "green": (50, 190, 70),
    "blue": (50, 90, 230),
    "yellow": (240, 215, 60),
    "violet": (170, 70, 200),
    "white": (240, 240, 240),
}
LABELS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
"""Colour and shape of the largest shape of a video."""

PUSH = 0.04
"""Deviation of a push in each direction, in parts of the picture a frame."""
KEPT_SPEED = 0.5
"""Part of its speed that a pushed shape keeps from frame to frame."""

# Near-lossless, with a constant quantiser: at this size x264's adaptive one gave different bytes in each run.
_X264_OPTIONS = {"qp": "10", "preset": "veryfast", "g": "16"}


@dataclass(frozen=True)
class _Picture:
    frames: int
    size: int
    fps: int
    seed: int
    pushed: ClassVar[bool] = False

    @property
    def duration_s(self) -> int:
        """Whole seconds, as Kinetics annotates."""
        return math.ceil(self.frames / self.fps)

    @property
    def digest(self) -> str:
        """Part of a file's name: the folder may hold files with other settings. It follows from the repr, so class and
        fields keep their names."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:4]


@dataclass(frozen=True)
class _PushedPicture(_Picture):
    """Its files have other names than those without actions."""

    pushed: ClassVar[bool] = True


def write_dataset(
    root: Path,
    *,
    train_videos: int,
    val_videos: int,
    frames: int = 32,
    size: int = 64,
    fps: int = 8,
    seed: int = 0,
    actions: bool = False,
) -> None:
    """Write `<root>/<label>/<id>_000000_<seconds>.mp4` for both splits, then `<root>/train.csv` and `val.csv`.

    With `actions` each video has a `.npz` beside it: `actions` (F, 2), how far down and right the largest shape is
    pushed after each frame; `states` (F, 2), where its centre is. Both in parts of the picture.
    Files that exist are kept: each gets its name only when it is complete.
    """
    picture = (_PushedPicture if actions else _Picture)(frames, size, fps, seed)
    root.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train_videos), ("val", val_videos)):
        rows = [_write_one(root, split, index, picture) for index in range(count)]
        lines = ["label,youtube_id,time_start,time_end,split,is_cc", *rows]
        _replace(root / f"{split}.csv", "".join(f"{line}\n" for line in lines).encode())


def _write_one(root: Path, split: str, index: int, picture: _Picture) -> str:
    """Write one video unless it exists; returns its row of the annotation file."""
    label = LABELS[index % len(LABELS)]
    youtube_id = f"{split[0]}{index:06d}{picture.digest}"  # 11 characters, as on YouTube
    path = root / label / f"{youtube_id}_{0:06d}_{picture.duration_s:06d}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.pushed and not path.with_suffix(".npz").exists():
        _replace(path.with_suffix(".npz"), _arrays(split, index, picture))
    if not path.exists():
        _replace(path, encode_mp4(draw_video(split, index, picture), picture.fps))
    return f"{label},{youtube_id},0,{picture.duration_s},{split},0"


def _replace(path: Path, content: bytes) -> None:
    """Write and rename: after a kill `path` is as before, or complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _arrays(split: str, index: int, picture: _Picture) -> bytes:
    """The `.npz` of a video with actions."""
    main, stream = _scene(split, index, picture)[1][-1], io.BytesIO()
    assert main.pushes is not None
    np.savez(stream, actions=main.pushes / picture.size, states=main.centres / picture.size)
    return stream.getvalue()


def draw_frames(number: int, *, frames: int, size: int, fps: int) -> NDArray[np.uint8]:
    """The frames of training video `number`, (F, S, S, 3) RGB."""
    return draw_video("train", number, _Picture(frames, size, fps, seed=0))


def draw_video(split: str, index: int, picture: _Picture) -> NDArray[np.uint8]:
    """The frames of one video, (F, S, S, 3) RGB; the first shape is the largest and gives the label."""
    background, shapes = _scene(split, index, picture)
    canvas = np.broadcast_to(background, (picture.frames, picture.size, picture.size, 3)).copy()
    for shape in shapes:
        coverage = _coverage(shape.kind, shape.centres, shape.radius, picture.size)[..., None]  # (F, S, S, 1)
        canvas += coverage * (np.array(COLOURS[shape.colour], dtype=np.float32) - canvas)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def shape_centres(
    split: str, index: int, *, frames: int = 32, size: int = 64, fps: int = 8, seed: int = 0
) -> NDArray[np.float32]:
    """Row and column (F, 2), in pixels, of the centre of the largest shape of the video that `write_dataset` writes."""
    _, shapes = _scene(split, index, _Picture(frames, size, fps, seed))
    return shapes[-1].centres


@dataclass(frozen=True)
class _Shape:
    kind: str
    colour: str
    radius: float
    centres: NDArray[np.float32]
    """(F, 2)"""
    pushes: NDArray[np.float32] | None = None
    """(F, 2) pixels a frame by which its velocity changes after each frame."""


def _scene(split: str, index: int, picture: _Picture) -> tuple[NDArray[np.float32], list[_Shape]]:
    """Background and shapes of a video; the main shape is the last one, in front of the others."""
    rng = np.random.default_rng([picture.seed, int(split == "val"), index])
    background = _background(rng, picture.size)
    main = LABELS[index % len(LABELS)]
    others = [str(rng.choice(LABELS)) for _ in range(rng.integers(1, 3))]
    shapes = []
    for thing in (*others, main):
        colour, kind = thing.split()
        radius = picture.size * (rng.uniform(0.17, 0.2) if thing is main else rng.uniform(0.08, 0.13))
        if picture.pushed and thing is main:
            shapes.append(_Shape(kind, colour, radius, *_pushed(rng, picture.frames, picture.size, radius)))
            continue
        centres = _trajectory(rng, picture.frames, picture.size, radius)
        if picture.pushed:
            centres[:] = centres[0]
        shapes.append(_Shape(kind, colour, radius, centres))
    return background, shapes


def _background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A dark smooth texture, (S, S, 3): a few slow waves a channel."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    texture = np.full((size, size, 3), 60, dtype=np.float32)
    for channel in range(3):
        for _ in range(3):
            wave_y, wave_x = rng.uniform(-2, 2, size=2)
            phase = rng.uniform(0, 2 * np.pi)
            texture[..., channel] += 12 * np.sin(2 * np.pi * (wave_y * y + wave_x * x) + phase)
    return texture


def _trajectory(rng: np.random.Generator, frames: int, size: int, radius: float) -> NDArray[np.float32]:
    """Centres (F, 2) of a disc of `radius` pixels: constant speed, mirrored at the walls."""
    room = size - 2 * radius
    angle, speed = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.02, 0.04)
    velocity = speed * np.array([np.sin(angle), np.cos(angle)])
    straight = rng.uniform(0, room, size=2) + velocity * np.arange(frames)[:, None]
    folded = room - np.abs(straight % (2 * room) - room)
    return (folded + radius).astype(np.float32)


def _pushed(
    rng: np.random.Generator, frames: int, size: int, radius: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres (F, 2) of a disc that is pushed at random, slows down and is mirrored at the walls; the pushes (F, 2)."""
    room, centres = size - 2 * radius, np.zeros((frames, 2))
    pushes = size * rng.normal(0, PUSH, (frames, 2))
    centres[0], velocity = rng.uniform(0, room, size=2), np.zeros(2)
    for frame in range(1, frames):
        velocity = KEPT_SPEED * velocity + pushes[frame - 1]
        straight = centres[frame - 1] + velocity
        centres[frame] = room - np.abs(straight % (2 * room) - room)
        velocity = np.where((straight < 0) | (straight > room), -velocity, velocity)
    return (centres + radius).astype(np.float32), pushes.astype(np.float32)


def _coverage(shape: str, centres: NDArray[np.float32], radius: float, size: int) -> NDArray[np.float32]:
    """How much of each pixel the shape covers, (F, S, S) in 0 to 1, from the signed distance to its outline."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    dy, dx = y - centres[:, 0, None, None], x - centres[:, 1, None, None]
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.85 * radius
    else:
        distance = np.maximum(np.float32(3**0.5 / 2) * np.abs(dx) - dy / 2, dy) - radius / 2
    coverage: NDArray[np.float32] = np.clip(0.5 - distance, 0, 1)
    return coverage


def encode_mp4(frames: NDArray[np.uint8], fps: int, options: Mapping[str, str] = _X264_OPTIONS) -> bytes:
    """An MP4 of (F, h, w, 3) RGB frames, compressed by x264 with `options`."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps), options=dict(options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()
