"""The codecs there are: float32, float16, bfloat16, and int8 with one scale per latent vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flcache.cache.codecs.floats import BFloat16Codec, FloatCodec
from flcache.cache.codecs.int8 import Int8Codec
from flcache.cache.codecs.protocol import Codec, PayloadLayout, Shape, ValueRangeError
from flcache.errors import CacheError

__all__ = ["CODECS", "Codec", "PayloadLayout", "Shape", "ValueRangeError", "get_codec", "needs_calibration"]

CODECS: dict[str, Codec] = {
    "bfloat16": BFloat16Codec(),
    "float16": FloatCodec("float16", np.dtype("<f2")),
    "float32": FloatCodec("float32", np.dtype("<f4")),
    "int8": Int8Codec(),
}


def get_codec(name: Any, calibration: Mapping[str, Any] | None = None) -> Codec:
    """The codec called `name`, with the constants of a spec's `calibration` where it takes any.

    Raises CacheError that lists those there are.
    """
    if not isinstance(name, str) or name not in CODECS:
        raise CacheError(f'no codec {name!r}; "cache.codec" is one of {", ".join(sorted(CODECS))}')
    if needs_calibration(name) and calibration is not None:
        return Int8Codec(*(np.array(calibration[key], dtype=np.float32) for key in ("mean", "std")))
    return CODECS[name]


def needs_calibration(name: str) -> bool:
    """Whether the codec called `name` standardises latents, and so needs their mean and deviation first."""
    return name == "int8"
