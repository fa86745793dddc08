"""Options of the videos: where they are and how clips are cut from them."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flcache.bounds import Fraction, OptionalPath, Positive, PositiveFloat
from flcache.errors import ConfigError


@dataclass(frozen=True)
class DatasetOptions:
    root: OptionalPath = None
    """Folder of the videos, or its URL (`s3://bucket/videos`, or any that fsspec knows); without `train` and `val`
    every video below it, or in its tars, is taken."""
    train: OptionalPath = None
    """List of the training videos: a Kinetics CSV, a CSV with the column `path`, `path index` lines, a folder,
    Something-Something's JSON, or tars (`{00000..00123}.tar`), here or at a URL; paths are relative to `root`."""
    val: OptionalPath = None
    """The same for the validation videos; a `train` with a column `split` may hold them too."""
    val_fraction: Fraction = 0.0
    """Where no validation videos are named: the part of the training videos that is held out as these, by file."""
    labels: OptionalPath = None
    """Names of classes where a list has indices: `index label` lines, or `labels.json` of Something-Something."""
    allow_outside: bool = False
    """Accept absolute paths and `..` in annotation files that lead out of `root`."""
    max_missing_fraction: Fraction = 0.25
    """Videos of a split that may be absent from `root` before encoding refuses to start."""
    arrays: tuple[str, ...] = ()
    """Arrays of the videos' frames to keep beside the latents, such as `[actions]`: each video has a `.npz` of the same
    stem with them, one row a frame."""

    def __post_init__(self) -> None:
        for name in self.arrays:
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name) or self.arrays.count(name) > 1:
                raise ConfigError(f"dataset.arrays: {name!r}: list each once, in small letters, digits and `_`")


@dataclass(frozen=True)
class ClipRule:
    """How clips are cut from a video. Raises ConfigError where the values contradict each other."""

    frames: Positive = 16
    fps: PositiveFloat | None = 4.0
    """Frames per second to sample at; null to use `stride`."""
    stride: Positive | None = None
    """Every how many-th frame of the video to take; null to use `fps`."""
    clips_per_video: Positive | None = 1
    """Evenly spread over the video, each in the middle of its share; null for the whole video, clip after clip."""
    short: Literal["pad", "drop"] = "pad"
    """Videos shorter than a clip: `pad` repeats the last frame under a mask, `drop` leaves them out."""
    max_bytes: Positive = 2 * 2**30
    """Largest clip as decoded, frames x height x width x 3 bytes; a larger one fails before it is decoded."""

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "clips_per_video"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"clip.{name} is {value}; set 1 or more")
        if (self.fps is None) == (self.stride is None):
            raise ConfigError(
                f"clip.fps is {self.fps} and clip.stride is {self.stride}; set one of them and the other to null"
            )
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ConfigError(f"clip.fps is {self.fps}; set a rate above 0")
        if self.clips_per_video is None and self.stride is not None:
            raise ConfigError(
                "clip.clips_per_video is null (the whole video) and clip.stride is set: how many such clips a video "
                "holds is known only when it is open; set clip.fps instead, or a number of clips"
            )
        if self.short not in ("pad", "drop"):
            raise ConfigError(f"clip.short is {self.short!r}; choose pad or drop")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the spec, without `max_bytes`, which changes no pixel. Caches without `times` have the times
        of display."""
        return {name: value for name, value in asdict(self).items() if name != "max_bytes"} | {"times": "nominal"}
