"""Every error a user can meet. The command line prints it on one line and exits 1; nothing else is caught there.

FlcacheError
├── ConfigError            a key, a value or a file of the configuration
├── DataError              annotation files, and videos missing beyond what the configuration allows
│   └── DecodeError        one video, or one clip of it, cannot be decoded
├── EncoderError           an encoder that cannot be loaded, or was asked for what it cannot do
├── CacheError             a cache that cannot be read or written
│   ├── SpecMismatch       the cache holds latents of another spec
│   └── DamagedError       bytes on disk are not the bytes that were committed
├── LeakError              a context that has seen the future it is asked to predict
└── TrainingError          a run that cannot go on: non-finite loss, collapse, foreign checkpoint

A message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class FlcacheError(Exception):
    """Base of every error that is the data's, the configuration's or the machine's, not ours."""


class ConfigError(FlcacheError):
    """A key, a value or a file of the configuration is wrong."""


class DataError(FlcacheError):
    """An annotation file is wrong, or more videos are missing or failed than the configuration allows."""


class DecodeError(DataError):
    """One video, or one clip of it, cannot be decoded."""


class EncoderError(FlcacheError):
    """An encoder cannot be loaded, or was asked for what it cannot do."""


class CacheError(FlcacheError):
    """A cache cannot be read or written."""


class SpecMismatch(CacheError):
    """The cache holds latents of another spec; the message names every field that differs."""


class DamagedError(CacheError):
    """Bytes on disk are not the bytes that were committed."""


class LeakError(FlcacheError):
    """A context has seen the future it is asked to predict."""


class TrainingError(FlcacheError):
    """A training run cannot go on."""
