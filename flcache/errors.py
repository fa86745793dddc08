"""Every error a user can meet. The command line prints it on one line and exits 1; it catches nothing else.

FlcacheError
├── ConfigError            a key, a value or a file of the configuration
├── DataError              annotation files, and videos missing beyond what the configuration allows
│   └── DecodeError        one video, or one clip of it, cannot be decoded
├── EncoderError           an encoder that cannot be loaded, or was asked for what it cannot do
├── CacheError             a cache that cannot be read or written
│   ├── SpecMismatch       the cache holds latents of another spec
│   ├── RemoteError        a store at a URL fails, or bytes do not arrive as they lie there
│   └── DamagedError       bytes on disk are not the bytes that were committed
├── PredictorError         a saved predictor that cannot be loaded, or was asked for what it cannot do
├── LeakError              a context that has seen the future it is asked to predict
└── TrainingError          a run that cannot go on: non-finite loss, collapse, foreign checkpoint

A message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from typing import Literal

Stage = Literal["find", "read", "decode", "encode", "write"]
"""Where a clip has failed; `read` is of files of latents that are imported."""

Reason = Literal[
    "no file",
    "not readable",  # no permission, a folder, a file of latents that holds something else
    "not a video",  # no container that FFmpeg knows
    "no video stream",
    "cut off",  # an empty file too
    "undecodable frame",
    "size changes",  # pictures of different sizes in one clip
    "too short",
    "too large",  # its frames do not fit in memory
    "no arrays",  # no `.npz` beside the video, or not the wanted array in it
    "wrong arrays",  # not one row of finite numbers for each frame
    "timed out",
    "worker died",
    "not finite",
    "out of range",
    "our own error",  # an unexpected exception: a bug of flcache, not of the video
    "unknown",  # failures written before reasons were kept
]
"""Why a clip has failed."""


class FlcacheError(Exception):
    """Base of every error whose cause is the data, the configuration or the machine."""


class ConfigError(FlcacheError):
    """A key, a value or a file of the configuration is wrong."""


class DataError(FlcacheError):
    """An annotation file is wrong, or more videos are missing or failed than the configuration allows.

    An error of one clip has the reason and how often the clip was tried.
    """

    def __init__(self, message: str, *, reason: Reason = "unknown", attempts: int = 1) -> None:
        super().__init__(message)
        self.reason = reason
        self.attempts = attempts


class DecodeError(DataError):
    """One video, or one clip of it, cannot be decoded."""


class EncoderError(FlcacheError):
    """An encoder cannot be loaded, or was asked for what it cannot do."""


class CacheError(FlcacheError):
    """A cache cannot be read or written."""


class SpecMismatch(CacheError):
    """The cache holds latents of another spec; the message names every field that differs."""


class RemoteError(CacheError):
    """A store at a URL fails for good, or bytes do not arrive as they lie there."""


class DamagedError(CacheError):
    """Bytes on disk are not the bytes that were committed."""


class PredictorError(FlcacheError):
    """A saved predictor cannot be loaded, or was asked for what it cannot do."""


class LeakError(FlcacheError):
    """A context has seen the future it is asked to predict."""


class TrainingError(FlcacheError):
    """A training run cannot go on."""
