"""The processor of an encoder: loaded with it, or its family's default for a stated architecture; and which fields of
a Hugging Face config or processor a spec keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

from flcache.encoder.families import Family, stated_size
from flcache.encoder.options import EncoderSource
from flcache.encoder.torchvision_ops import import_transformers
from flcache.errors import EncoderError

FIELDS = (
    "crop_size",
    "do_center_crop",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "offset",
    "resample",
    "rescale_factor",
    "size",
)
"""Fields that a spec always states. The first specs stated these alone, so never add to the list."""

IGNORED_FIELDS = {
    "auto_map",
    "device",
    "feature_extractor_type",
    "image_processor_type",
    "processor_class",
    "return_metadata",
    "return_tensors",
    "video_processor_type",
}
"""Fields that never change pixels: names of classes, and arguments that `LatentVideoModel` passes."""


def load_processor(family: Family, config: Any, source: EncoderSource) -> Any:
    """The processor saved with the model that `source` names, or the family's own sized for `config`, with the fields
    that `source` sets. Raises EncoderError."""
    if "size" in source.processor and family.processor == "VJEPA2VideoProcessor":
        raise EncoderError(
            "encoder.processor.size: V-JEPA 2's processor ignores it and resizes the short edge to crop_size * 256 / "
            '224; set "encoder.processor.crop_size" instead'
        )
    processor = _saved(source.name, source.revision) if source.name else _sized(family, config)
    if not source.processor:
        return processor
    try:
        return type(processor)(**{**processor_fields(processor), **source.processor})
    except (TypeError, ValueError) as error:
        raise EncoderError(f"encoder.processor: {str(error).splitlines()[0]}") from error


def processor_fields(processor: Any) -> dict[str, Any]:
    """The fields of a processor that decide the encoder's input, as plain values."""
    defaults = type(processor)().to_dict()
    return deciding_fields(processor.to_dict(), defaults, always=FIELDS, never=IGNORED_FIELDS)


def deciding_fields(
    values: Mapping[str, Any], defaults: Mapping[str, Any], *, always: Collection[str], never: Collection[str]
) -> dict[str, Any]:
    """The fields of `values` that differ from their class's `defaults`, and those named in `always` that are not None;
    without private ones and those named in `never`. So a field that a new library version adds is kept only once it is
    set."""
    kept = {}
    for name in {*values, *defaults}.difference(never):
        value, default = _plain(values.get(name)), _plain(defaults.get(name))
        if value != default or (name in always and value is not None):
            kept[name] = value
    return {name: kept[name] for name in sorted(kept) if not name.startswith("_")}


def output_size(processor: Any) -> tuple[int, int]:
    """Height and width of a processor's output in pixels. Raises EncoderError where it is not fixed."""
    fields = processor_fields(processor)
    size = fields["crop_size"] if fields.get("do_center_crop") else fields["size"]
    if "height" not in size:
        raise EncoderError(f"encoder.processor: {size} leaves clips of different sizes; set a crop_size")
    return int(size["height"]), int(size["width"])


def _plain(value: Any) -> Any:
    """`value` as JSON holds it, without entries that are None: size objects of transformers list every kind of size."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _saved(name: str, revision: str | None) -> Any:
    """The video processor saved with a model, or its image processor where there is none."""
    transformers = import_transformers()
    for auto_class in (transformers.AutoVideoProcessor, transformers.AutoImageProcessor):
        for local_only in (True, False):
            try:
                return auto_class.from_pretrained(name, revision=revision, local_files_only=local_only)
            except (OSError, ValueError):
                continue
    raise EncoderError(
        f'encoder: "{name}" has neither a video processor nor an image processor; save one beside the weights with '
        f"processor.save_pretrained"
    )


def _sized(family: Family, config: Any) -> Any:
    """The family's processor with its default resizing, scaled to the size that `config` was made for."""
    processor_class = getattr(import_transformers(), family.processor)
    default = processor_fields(processor_class())
    target = stated_size(config)
    if "crop_size" not in default:
        return processor_class(size={"height": target, "width": target})
    size = {edge: pixels * target // default["crop_size"]["height"] for edge, pixels in default["size"].items()}
    return processor_class(size=size, crop_size={"height": target, "width": target})
