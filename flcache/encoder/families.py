"""What differs between encoder families: how a step is made, which tokens are not patches, and their order.

Source: the modelling files of transformers; tests check it on random-weight models.
B clips, F frames, T steps, H x W patch grid, D channels, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flcache.errors import EncoderError


@dataclass(frozen=True)
class Family:
    """How one `model_type` of transformers turns pixels into tokens."""

    processor: str
    """Its processor's class in transformers, for models built with random weights."""
    video: bool
    """True: the model takes `(B, F, 3, h, w)`; False: it takes single frames, one step each."""
    class_tokens: int = 0
    """Tokens in front of the patches, `registers` not counted."""
    registers: str | None = "num_register_tokens"
    """Config field with the number of further tokens in front of the patches; a config without it has none."""
    fixed_frames: str | None = None
    """Config field with the only number of frames the model accepts."""
    fixed_size: bool = True
    """Whether the model accepts only the pixel size of its config."""
    space_first: bool = False
    """Tokens run over space, then time (TimeSformer)."""
    submodule: str | None = None
    """The part of the model that encodes; the rest is dropped."""
    predictor: str | None = None
    """The part that was pretrained to predict latents from latents."""


FAMILIES: dict[str, Family] = {
    "vjepa2": Family("VJEPA2VideoProcessor", video=True, submodule="encoder", predictor="predictor"),
    "videomae": Family("VideoMAEVideoProcessor", video=True, fixed_frames="num_frames"),
    "vivit": Family("VivitVideoProcessor", video=True, class_tokens=1, fixed_frames="num_frames"),
    "timesformer": Family(
        "TimesformerVideoProcessor", video=True, class_tokens=1, fixed_frames="num_frames", space_first=True
    ),
    "dinov2": Family("BitImageProcessor", video=False, class_tokens=1, fixed_size=False),
    "dinov2_with_registers": Family("BitImageProcessor", video=False, class_tokens=1, fixed_size=False),
    "dinov3_vit": Family("DINOv3ViTImageProcessor", video=False, class_tokens=1, fixed_size=False),
    "vit": Family("ViTImageProcessor", video=False, class_tokens=1),
    "ijepa": Family("ViTImageProcessor", video=False),
    "siglip_vision_model": Family("SiglipImageProcessor", video=False),
    "clip_vision_model": Family("CLIPImageProcessor", video=False, class_tokens=1),
}


def register_family(model_type: str, family: Family) -> None:
    """Let encoders of `model_type` that are loaded from now on be laid out as `family` says.

    The same family may be registered again. Raises EncoderError if `model_type` has another.
    """
    if FAMILIES.setdefault(model_type, family) != family:
        raise EncoderError(f'encoder: model_type "{model_type}" has another family already: {FAMILIES[model_type]}')


def family_of(model_type: str, leading_tokens: int | None = None) -> Family:
    """The family of a `model_type`, or of image encoders with `leading_tokens` tokens in front of their patches.

    Raises EncoderError for an unknown `model_type` without `leading_tokens`, and for a known one with them.
    """
    if leading_tokens is None and model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise EncoderError(
            f'encoder: no adapter for model_type "{model_type}"; flcache knows {known}. For another image encoder, set '
            '"encoder.leading_tokens" to the number of tokens in front of its patches'
        )
    if leading_tokens is None:
        return FAMILIES[model_type]
    if model_type in FAMILIES:
        raise EncoderError(
            f'encoder.leading_tokens: flcache knows the tokens of model_type "{model_type}"; set it to null'
        )
    return Family("ViTImageProcessor", video=False, class_tokens=leading_tokens, registers=None)


def patch_shape(config: Any) -> tuple[int, int, int]:
    """Frames, height and width of one patch, in pixels: tubelet_size is an int or, for ViViT, all three."""
    tubelet = getattr(config, "tubelet_size", 1)
    if isinstance(tubelet, (list, tuple)):
        return int(tubelet[0]), int(tubelet[1]), int(tubelet[2])
    patch = _stated(config, "patch_size")
    height, width = patch if isinstance(patch, (list, tuple)) else (patch, patch)
    return int(tubelet), int(height), int(width)


def stated_size(config: Any) -> int:
    """Edge of the square input the config was made for, in pixels."""
    size = getattr(config, "crop_size", None) or _stated(config, "image_size")
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def latent_width(config: Any) -> int:
    """Channels of a latent."""
    return int(_stated(config, "hidden_size"))


def check_pixels(family: Family, config: Any, pixels: Tensor) -> None:
    """Raises EncoderError for pixels (B, F, 3, h, w) of a forward pass that the model would silently get wrong."""
    frames, (height, width) = pixels.shape[1], pixels.shape[-2:]
    if family.fixed_frames and frames != getattr(config, family.fixed_frames):
        wanted = getattr(config, family.fixed_frames)
        raise EncoderError(
            f"encoder: this model accepts exactly {wanted} frames, not {frames}: set encode.context=window and "
            f"encode.window={wanted // patch_shape(config)[0]}, or take an encoder that can encode a step alone "
            f"(V-JEPA 2, DINOv2, DINOv3)"
        )
    check_size(family, config, height, width)


def check_size(family: Family, config: Any, height: int, width: int) -> None:
    """Raises EncoderError for pixels of `height` x `width` that do not fit the positions or patches of `config`."""
    _, patch_height, patch_width = patch_shape(config)
    size = stated_size(config)
    if family.fixed_size and (height, width) != (size, size):
        raise EncoderError(
            f"encoder: pixels of {height} x {width} against a config of {size} x {size} give wrong positions: set "
            f"encoder.processor.crop_size={size}, or state another size in encoder.architecture"
        )
    if height % patch_height or width % patch_width:
        raise EncoderError(
            f"encoder: pixels of {height} x {width} do not divide into patches of {patch_height} x {patch_width}: "
            f'set "encoder.processor.crop_size" to a multiple'
        )


def to_grid(family: Family, config: Any, tokens: Tensor, steps: int, height: int, width: int) -> Tensor:
    """The model's output `tokens` (B, N, D) -> (B, steps, height, width, D), patches only."""
    registers = getattr(config, family.registers, 0) if family.registers else 0
    patches = tokens[:, family.class_tokens + int(registers or 0) :]  # (B, T*H*W, D)
    if patches.ndim != 3 or patches.shape[1] != steps * height * width:
        raise EncoderError(
            f"encoder: an output of {tuple(tokens.shape)} leaves {patches.shape[1]} patch tokens for a grid of "
            f"{steps} x {height} x {width}; this model is laid out in a way that flcache does not know"
        )
    if family.space_first:
        return patches.reshape(len(patches), height, width, steps, -1).permute(0, 3, 1, 2, 4)
    return patches.reshape(len(patches), steps, height, width, -1)


def _stated(config: Any, name: str) -> Any:
    """Field `name` of `config`. Raises EncoderError where an encoder without one is no grid of patches."""
    value = getattr(config, name, None)
    if value is None:
        raise EncoderError(
            f'encoder: the config of model_type "{config.model_type}" has no {name}, so its output is no grid of '
            "patches that flcache could store; choose a vision transformer"
        )
    return value
