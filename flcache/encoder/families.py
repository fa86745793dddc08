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
    """Tokens in front of the patches, registers (`num_register_tokens`) not counted."""
    fixed_frames: str | None = None
    """Config field with the only number of frames the model accepts."""
    fixed_size: bool = True
    """Whether the model accepts only the pixel size of its config."""
    space_first: bool = False
    """Tokens run over space, then time (TimeSformer)."""
    submodule: str | None = None
    """The part of the model that encodes; the rest is dropped."""
    unused: tuple[str, ...] = ()
    """Names of parts that no latent depends on: they never train."""
    predictor: str | None = None
    """The part that was pretrained to predict latents from latents."""


FAMILIES: dict[str, Family] = {
    "vjepa2": Family("VJEPA2VideoProcessor", video=True, submodule="encoder", predictor="predictor"),
    "videomae": Family("VideoMAEVideoProcessor", video=True, fixed_frames="num_frames"),
    "vivit": Family("VivitVideoProcessor", video=True, class_tokens=1, fixed_frames="num_frames", unused=("pooler",)),
    "timesformer": Family(
        "TimesformerVideoProcessor", video=True, class_tokens=1, fixed_frames="num_frames", space_first=True
    ),
    "dinov2": Family("BitImageProcessor", video=False, class_tokens=1, fixed_size=False, unused=("mask_token",)),
    "dinov2_with_registers": Family(
        "BitImageProcessor", video=False, class_tokens=1, fixed_size=False, unused=("mask_token",)
    ),
    "dinov3_vit": Family(
        "DINOv3ViTImageProcessor", video=False, class_tokens=1, fixed_size=False, unused=("mask_token",)
    ),
    "vit": Family("ViTImageProcessor", video=False, class_tokens=1, unused=("pooler", "mask_token")),
    "ijepa": Family("ViTImageProcessor", video=False, unused=("pooler", "mask_token")),
}


def family_of(model_type: str) -> Family:
    """The family of a `model_type`. Raises EncoderError naming the known ones."""
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise EncoderError(f'encoder: no adapter for model_type "{model_type}"; flcache knows {known}')
    return FAMILIES[model_type]


def patch_shape(config: Any) -> tuple[int, int, int]:
    """Frames, height and width of one patch, in pixels: tubelet_size is an int or, for ViViT, all three."""
    tubelet = getattr(config, "tubelet_size", 1)
    if isinstance(tubelet, (list, tuple)):
        return int(tubelet[0]), int(tubelet[1]), int(tubelet[2])
    patch = config.patch_size
    height, width = patch if isinstance(patch, (list, tuple)) else (patch, patch)
    return int(tubelet), int(height), int(width)


def stated_size(config: Any) -> int:
    """Edge of the square input the config was made for, in pixels."""
    size = getattr(config, "crop_size", None) or config.image_size
    return int(size[0] if isinstance(size, (list, tuple)) else size)


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
    leading = family.class_tokens + int(getattr(config, "num_register_tokens", 0) or 0)
    patches = tokens[:, leading:]  # (B, T*H*W, D)
    if patches.shape[1] != steps * height * width:
        raise EncoderError(
            f"encoder: {patches.shape[1]} patch tokens for a grid of {steps} x {height} x {width}; "
            f"this model is laid out in a way that flcache does not know"
        )
    if family.space_first:
        return patches.reshape(len(patches), height, width, steps, -1).permute(0, 3, 1, 2, 4)
    return patches.reshape(len(patches), steps, height, width, -1)
