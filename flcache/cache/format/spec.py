"""What the latents of a cache are: `spec.json`, its fingerprint, and how two specs differ.

Hard fields decide the values of the latents and are hashed into the fingerprint; a run with other hard fields is
refused. Soft fields (library versions, device, batch size) are kept for the record and only warn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.cache.codecs.protocol import Codec, PayloadLayout
from flcache.cache.codecs.reduction import (
    Reduction,
    are_constants,
    are_counts,
    are_floats,
    parse_reduction,
    reduced_shape,
)
from flcache.cache.codecs.registry import get_codec
from flcache.cache.format.names import SPEC
from flcache.cache.format.record import MAX_RECORD_BYTES, canonical_json, parse_object, read_record, seal
from flcache.cache.storage import Location, Store, open_store
from flcache.errors import CacheError, DamagedError, SpecMismatch

FORMAT = "flc1"
_FIELDS = {"format", "fingerprint", "spec", "soft", "channels"}
_RESTORE = "restore it from a copy, or choose another cache.dir"
_SHOWN_CHARACTERS = 80
ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
MAX_ROW_NUMBERS = 2**24
"""Of an array of the videos' frames, in a step."""
MAX_CLIP_BYTES = 2**48
"""No file holds a larger clip, and every offset below it fits the integers of an idx."""


@dataclass(frozen=True)
class CacheSpec:
    """The content of `spec.json`."""

    hard: dict[str, Any]
    """Needs `codec`, `layout.shape` (T, H, W, D) of what is read and `context.seen_until` (T). `keep` says how the
    encoder's latents are reduced to that, `calibration` with which constants, `layout.arrays` which arrays of the
    videos' frames are kept beside them; other fields are the caller's."""
    soft: dict[str, Any]
    channels: dict[str, Any] | None = None
    """`mean` and `rms` per channel of the training split and their `count`, once all of it is encoded."""

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the canonical JSON of the hard fields."""
        return hashlib.sha256(canonical_json(self.hard).encode()).hexdigest()

    @cached_property
    def codec(self) -> Codec:
        return get_codec(self.hard["codec"], self.hard.get("calibration"))

    @cached_property
    def reduction(self) -> Reduction | None:
        """How the encoder's latents are reduced before they are stored; None where they are stored whole."""
        return parse_reduction(self.hard.get("keep"), self.hard.get("calibration"), "spec")

    def reduce(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """The encoder's latents as the codec gets them."""
        return self.reduction.apply(latents) if self.reduction else latents

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        """(T, H, W, D) of the encoder's latents."""
        return self.reduction.shape if self.reduction else self.latent_shape

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, D) of what is read; the arrays in a shard have the shapes that the codec gives them."""
        T, H, W, D = self.hard["layout"]["shape"]
        return T, H, W, D

    @property
    def arrays(self) -> dict[str, tuple[int, int]]:
        """(T, A) of the arrays of the videos' frames that are kept beside the latents, by name."""
        return {name: (steps, numbers) for name, (steps, numbers) in sorted(_arrays(self.hard).items())}

    @property
    def row_widths(self) -> dict[str, int]:
        """How many numbers the `arrays` have for each frame of a video, by name."""
        return {name: numbers // self.hard["layout"]["tubelet_size"] for name, (_, numbers) in self.arrays.items()}

    @cached_property
    def payloads(self) -> tuple[PayloadLayout, ...]:
        """All arrays of a clip in a shard: those of the codec, then the `arrays`."""
        layouts = (PayloadLayout(name, np.dtype("<f4"), shape) for name, shape in self.arrays.items())
        return (*self.codec.payloads(self.latent_shape), *layouts)

    def decode(self, payloads: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The latents of a clip, or of some steps of it, from all its payloads."""
        return self.codec.decode(payloads[: len(payloads) - len(self.arrays)])

    @property
    def nominal_times(self) -> bool:
        """Whether the times of steps are the sampled ones; the first caches have the times of display."""
        return bool(_field(self.hard, "clip", "times") == "nominal")

    @property
    def seen_until(self) -> tuple[int, ...]:
        """(T,) the last step that each step has seen."""
        return tuple(self.hard["context"]["seen_until"])


def make_spec(hard: Mapping[str, Any], soft: Mapping[str, Any] | None = None) -> CacheSpec:
    """A checked spec, its values as they come back from JSON. Raises CacheError for fields that no cache can have."""
    spec = CacheSpec(json.loads(canonical_json(hard)), json.loads(canonical_json(soft or {})))
    _check_layout(spec, "spec")
    return spec


def create_or_check(
    location: Location,
    hard: Mapping[str, Any],
    soft: Mapping[str, Any],
    calibrate: Callable[[], Mapping[str, Any]] | None = None,
) -> tuple[CacheSpec, list[str]]:
    """The spec of the cache at `location`, created if absent, and the soft differences to warn about.

    `calibrate` gives the `calibration` of a spec that needs one. It is called only where there is no cache yet: an
    existing cache keeps its calibration. Raises SpecMismatch, with nothing written, if the cache has other hard fields.
    """
    store = open_store(location)
    if not store.exists(SPEC):
        fresh = make_spec({**hard, "calibration": calibrate()} if calibrate else hard, soft)
        if store.write_new(SPEC, _serialise(fresh)):
            return fresh, []
    found = read_spec(store)
    wanted = CacheSpec(with_calibration(hard, found), dict(soft))
    if different := latent_differences(found, wanted):
        raise SpecMismatch(
            f"{store}: the cache holds latents of another spec: {'; '.join(different)}; "
            "go back to its settings, or choose another cache.dir"
        )
    store.remove_leftovers(SPEC)
    return found, differences(found.soft, wanted.soft)


def with_calibration(hard: Mapping[str, Any], cache: CacheSpec) -> dict[str, Any]:
    """`hard` with the calibration of `cache`, if it has one."""
    calibration = cache.hard.get("calibration")
    return dict(hard) if calibration is None else {**hard, "calibration": calibration}


def latent_differences(cache: CacheSpec, run: CacheSpec) -> list[str]:
    """Why the latents of a run are not those of a cache, a line for each hard field; empty if they are.

    Specs of earlier versions lack `clip.times`, or `encoder.fields` and some fields of encoder and processor: they are
    compared by the fields that they have.
    """
    if cache.fingerprint == run.fingerprint:
        return []
    return differences(cache.hard, _comparable(cache.hard, run.hard))


def without_times(hard: Mapping[str, Any]) -> dict[str, Any]:
    """`hard` as specs were before `clip.times`."""
    match hard:
        case {"clip": dict(clip)}:
            return {**hard, "clip": {name: value for name, value in clip.items() if name != "times"}}
    return dict(hard)


def differences(cache: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """One line per field that differs: `clip.fps: cache has 4.0, this run has 8.0`."""
    return list(_differences(cache, run, ""))


def read_spec(location: Location) -> CacheSpec:
    """The spec of the cache at `location`. Raises CacheError if there is none, or one of a newer format."""
    store = open_store(location)
    where = f"{store}/{SPEC}"
    if not store.exists(SPEC):
        raise CacheError(f'{store}: no cache here (no spec.json); make one with "flcache encode"')
    _check_format(where, parse_object(store.read(SPEC, MAX_RECORD_BYTES)))
    content = read_record(store, SPEC, repair=_RESTORE)
    if set(content) != _FIELDS or not isinstance(content["soft"], dict):
        raise DamagedError(f"{where}: its fields are not those of format {FORMAT}; {_RESTORE}")
    spec = CacheSpec(content["spec"], content["soft"], content["channels"])
    _check_layout(spec, where)
    if spec.fingerprint != content["fingerprint"]:
        raise DamagedError(f"{where}: its fingerprint is not that of its spec; {_RESTORE}")
    return spec


def write_spec(store: Store, spec: CacheSpec) -> None:
    """Write `spec.json`, replacing the one that is there."""
    store.write(SPEC, _serialise(spec))


def _serialise(spec: CacheSpec) -> bytes:
    content = {"format": FORMAT, "fingerprint": spec.fingerprint, "spec": spec.hard, "soft": spec.soft}
    return seal(content | {"channels": spec.channels})


def _check_format(where: str, content: dict[str, Any] | None) -> None:
    found = content.get("format") if content else None
    if found == FORMAT:
        return
    if isinstance(found, str) and re.fullmatch(r"flc[0-9]{1,9}", found):
        raise CacheError(f"{where}: format {found}, but this flcache reads {FORMAT}; use a matching flcache")
    raise CacheError(f"{where}: not the spec of a cache of format {FORMAT}; choose another cache.dir")


def _check_layout(spec: CacheSpec, where: str) -> None:
    """Refuse a spec whose shape, codec or `seen_until` no reader could use."""
    hard = spec.hard if isinstance(spec.hard, dict) else {}
    shape = _field(hard, "layout", "shape")
    if not are_counts(shape, 4, least=1):
        raise CacheError(f"{where}: layout.shape is {shape!r}; it must be [T, H, W, D]")
    seen = _field(hard, "context", "seen_until")
    if not are_counts(seen, shape[0], least=0):
        raise CacheError(f"{where}: context.seen_until is {seen!r}; it must hold one step for each of {shape[0]}")
    if get_codec(hard.get("codec")).clip_bytes(tuple(shape)) > MAX_CLIP_BYTES:
        raise CacheError(f"{where}: layout.shape is {shape!r}; no clip is that large")
    _check_calibration(hard, shape, where)
    _check_arrays(hard, shape, where)
    channels = spec.channels
    if channels is not None and not (
        isinstance(channels, dict)
        and set(channels) == {"mean", "rms", "count"}
        and all(are_floats(channels[name], shape[3]) for name in ("mean", "rms"))
    ):
        raise CacheError(
            f"{where}: channels must hold mean and rms, finite in float32, of {shape[3]} channels and their count"
        )


def _check_calibration(hard: dict[str, Any], shape: list[int], where: str) -> None:
    calibration = hard.get("calibration")
    if calibration is not None and not are_constants(calibration, shape[3]):
        raise CacheError(f"{where}: calibration must hold mean and std, above 0, of {shape[3]} channels")
    keep = hard.get("keep")
    if keep is not None:
        parse_reduction(keep, calibration, where)
        if (reduced := list(reduced_shape(keep, where))) != shape:
            raise CacheError(f"{where}: layout.shape is {shape}, but keep makes {reduced} of its shape")


def _check_arrays(hard: dict[str, Any], shape: list[int], where: str) -> None:
    arrays = _arrays(hard)
    taken = {layout.name for layout in get_codec(hard["codec"]).payloads(tuple(shape))}
    for name, found in arrays.items() if isinstance(arrays, dict) else [("", arrays)]:
        fits = are_counts(found, 2, least=1) and found[0] == shape[0] and found[1] <= MAX_ROW_NUMBERS
        if not fits or not ARRAY_NAME.fullmatch(name) or name in taken:
            raise CacheError(f"{where}: layout.arrays has {name!r}: {_show(found)}; it must hold [T, A] by plain names")


def _arrays(hard: dict[str, Any]) -> Any:
    return _field(hard, "layout", "arrays") or {}


def _field(hard: dict[str, Any], section: str, name: str) -> Any:
    fields = hard.get(section)
    return fields.get(name) if isinstance(fields, dict) else None


def _comparable(cache: Mapping[str, Any], run: Mapping[str, Any]) -> Mapping[str, Any]:
    """`run` without the fields that `cache` lacks because it was written by an earlier version."""
    match cache, run:
        case {"clip": dict(had_clip)}, {"clip": dict()} if "times" not in had_clip:
            run = without_times(run)
    match cache, run:
        case (
            {"encoder": {"architecture": dict(had), **first}, "processor": dict(had_processor)},
            {"encoder": {"fields": str(), "architecture": dict(has), **others}, "processor": dict(has_processor)},
        ) if "fields" not in first:
            encoder = {**others, "architecture": {name: has[name] for name in has if name in had}}
            processor = {name: has_processor[name] for name in has_processor if name in had_processor}
            return {**run, "encoder": encoder, "processor": processor}
    return run


def _differences(cache: Any, run: Any, field: str) -> Iterator[str]:
    if isinstance(cache, Mapping) and isinstance(run, Mapping):
        for key in sorted({*cache, *run}):
            path = f"{field}.{key}" if field else key
            if key not in run:
                yield f"{path}: cache has {_show(cache[key])}, this run has none"
            elif key not in cache:
                yield f"{path}: cache has none, this run has {_show(run[key])}"
            else:
                yield from _differences(cache[key], run[key], path)
    elif canonical_json(cache) != canonical_json(run):
        yield f"{field}: cache has {_show(cache)}, this run has {_show(run)}"


def _show(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
