"""Codecs by name; `register_codec` adds one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from flcache.bounds import OneOf
from flcache.cache.codecs.floats import BFloat16Codec, Float16Codec, Float32Codec
from flcache.cache.codecs.int8 import Int8Codec
from flcache.cache.codecs.protocol import Codec
from flcache.errors import CacheError

CODECS: dict[str, type[Codec]] = {
    "float32": Float32Codec,
    "float16": Float16Codec,
    "bfloat16": BFloat16Codec,
    "int8": Int8Codec,
}
CodecName = Annotated[str, OneOf(CODECS)]
Kind = TypeVar("Kind", bound=type[Codec])


def register_codec(codec: Kind) -> Kind:
    """Let caches and configurations that are opened from now on use `codec` by its name; also as a decorator.

    The same class may be registered again, as when a module is reloaded. Raises CacheError if another has the name.
    """
    known = CODECS.get(codec.name, codec)
    if (known.__module__, known.__qualname__) != (codec.__module__, codec.__qualname__):
        raise CacheError(f"codec {codec.name!r} is {known.__module__}.{known.__qualname__}; choose another name")
    CODECS[codec.name] = codec
    return codec


def get_codec(name: Any, calibration: Mapping[str, Any] | None = None) -> Codec:
    """The codec called `name`, for a spec with this `calibration`. Raises CacheError that lists the known names."""
    if not isinstance(name, str) or name not in CODECS:
        names = ", ".join(CODECS)
        raise CacheError(f'no codec {name!r}; "cache.codec" is one of {names}, or is registered with register_codec')
    return CODECS[name].from_calibration(calibration)
