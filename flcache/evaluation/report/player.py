"""The clips of the player, as sheets of small pictures inside the page.

A sheet holds one picture per step, eight in a row. Latents have one pixel per patch, enlarged by the browser.

Shapes: T steps, Tc of them context, K horizons, H x W patch grid, D channels; h, w pixels.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flcache.evaluation.report.colours import ColourBasis, heat

SHEET_COLUMNS = 8
MAX_CLIPS = 8
LATENT_BYTES = 1_500_000
"""Limit of all pictures of latents together, before compression and base64."""
FRAME_SIDE = 224
"""Largest longer side of a video frame in pixels."""
FRAME_PIXELS = 6_500_000
"""Limit of all frames together."""
FRAME_BYTES = 2_000_000
"""Limit of all frames together as JPEG; with base64 and the latents a page stays below 5 MB."""
JPEG_QUALITIES = (86, 70, 50, 30)
"""Tried in this order until the frames fit."""


@dataclass(frozen=True)
class RolledClip:
    """One clip with what was predicted for it; standardised latents on the CPU."""

    clip_id: str
    times: NDArray[np.float32]
    """(T,) seconds of each step, from the first frame of the clip."""
    valid: NDArray[np.bool_]
    """(T,) False where a step is padding."""
    context: Tensor
    """(Tc, H, W, D)"""
    target: Tensor
    """(K, H, W, D), with Tc + K = T"""
    prediction: Tensor
    """(K, H, W, D)"""
    copy: Tensor
    """(K, H, W, D)"""
    label: str | None = None
    frames: NDArray[np.uint8] | None = None
    """(T, h, w, 3) of the video at the steps' times, cropped as for the encoder; None where it could not be read."""

    @property
    def prediction_error(self) -> Tensor:
        """(K, H, W) mean squared error of each patch."""
        return (self.prediction - self.target).square().mean(-1)

    @property
    def copy_error(self) -> Tensor:
        """(K, H, W)"""
        return (self.copy - self.target).square().mean(-1)


def player_content(clips: Sequence[RolledClip], basis: ColourBasis) -> dict[str, Any]:
    """The player's content as plain values, pictures as data URIs. All clips have the same steps and boundary."""
    limit = _error_limit(clips)
    side, frame_bytes = frame_side(sum(len(clip.times) for clip in clips)), FRAME_BYTES // len(clips)
    return {
        "columns": SHEET_COLUMNS,
        "grid": [clips[0].context.shape[2], clips[0].context.shape[1]],
        "context": len(clips[0].context),
        "limit": limit,
        "explained": basis.explained,
        "clips": [
            {
                **_clip(clip, basis, limit),
                "frames": None if clip.frames is None else _frames(clip.frames, side, frame_bytes),
            }
            for clip in clips
        ],
    }


def clips_that_fit(latent_shape: Sequence[int]) -> int:
    """How many clips of (T, H, W, D) latents fit into a page; at least one."""
    T, H, W, _ = latent_shape
    sheets, colours = 5, 3
    return max(1, min(MAX_CLIPS, LATENT_BYTES // (sheets * colours * T * H * W)))


def frame_side(pictures: int) -> int:
    """The longer side of a frame in pixels, if the page holds `pictures` of them."""
    return max(48, min(FRAME_SIDE, math.isqrt(FRAME_PIXELS // max(1, pictures))))


def seen_region(processor: Mapping[str, Any], height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the part of a frame that an encoder sees, from the fields of its processor: the whole
    frame unless it resizes the short edge and crops the centre."""
    edge = processor.get("size", {}).get("shortest_edge")
    if not (processor.get("do_center_crop") and edge and "height" in processor.get("crop_size", {})):
        return 0, 0, width, height
    scale = min(height, width) / edge
    crop_height = min(height, round(processor["crop_size"]["height"] * scale))
    crop_width = min(width, round(processor["crop_size"]["width"] * scale))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _error_limit(clips: Sequence[RolledClip]) -> float:
    """The error with the brightest colour: the 99th percentile of the errors of copying."""
    errors = torch.cat([clip.copy_error[clip.valid[len(clip.context) :]].flatten() for clip in clips])
    return max(1e-6, float(torch.quantile(errors, 0.99))) if len(errors) else 1.0


def _clip(clip: RolledClip, basis: ColourBasis, limit: float) -> dict[str, Any]:
    truth = torch.cat([clip.context, clip.target])
    return {
        "id": clip.clip_id,
        "label": clip.label,
        "seconds": [round(float(time - clip.times[len(clip.context) - 1]), 3) for time in clip.times],
        "valid": clip.valid.tolist(),
        "error": _per_step(clip.prediction_error),
        "copy_error": _per_step(clip.copy_error),
        "sheets": {
            "truth": _png(basis.paint(truth)),
            "prediction": _png(basis.paint(clip.prediction)),
            "copy": _png(basis.paint(clip.copy)),
            "error": _png(heat(clip.prediction_error, limit)),
            "copy_error": _png(heat(clip.copy_error, limit)),
        },
    }


def _per_step(errors: Tensor) -> list[float]:
    return [round(value, 4) for value in errors.flatten(1).mean(1).tolist()]


def _frames(frames: NDArray[np.uint8], side: int, num_bytes: int) -> dict[str, Any]:
    """One sheet and the size of a frame on it. Frames are scaled down to a longer side of at most `side`."""
    height, width = frames.shape[1:3]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smaller = np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])
    picture = Image.fromarray(_sheet(smaller))
    sheets = (_encode(picture, "jpeg", quality=quality, subsampling=0) for quality in JPEG_QUALITIES)
    sheet = next((sheet for sheet in sheets if len(sheet) <= num_bytes), None)
    sheet = sheet or _encode(picture, "jpeg", quality=JPEG_QUALITIES[-1])
    return {"size": list(size), "sheet": _data_uri(sheet, "jpeg")}


def _png(pictures: NDArray[np.uint8]) -> str:
    return _data_uri(_encode(Image.fromarray(_sheet(pictures)), "png", optimize=True), "png")


def _sheet(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures (T, h, w, 3) as one, in rows of `SHEET_COLUMNS`."""
    count, height, width, _ = pictures.shape
    rows = math.ceil(count / SHEET_COLUMNS)
    sheet = np.zeros((rows * SHEET_COLUMNS, height, width, 3), dtype=np.uint8)
    sheet[:count] = pictures
    grid = sheet.reshape(rows, SHEET_COLUMNS, height, width, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, SHEET_COLUMNS * width, 3)


def _encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
