"""What a codec must know before the first clip is stored, from clips that are decoded and encoded for it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch

from flcache.batch import step_valid
from flcache.cache import Calibrator
from flcache.encoder import LatentVideoModel
from flcache.engines.stages import Decoded
from flcache.videos import DecodedClip


def calibrate(
    hard: Mapping[str, Any],
    decoded: Iterable[Decoded],
    model: LatentVideoModel,
    *,
    batch_size: int,
    on_clip: Callable[[bool], None],
) -> dict[str, Any]:
    """The `calibration` of a spec whose other hard fields are `hard`, from the clips that could be decoded.

    `on_clip` is called once a clip, with whether it failed. Raises CacheError if all of them did.
    """
    calibrator, waiting = Calibrator(hard), iter(decoded)
    while batch := list(islice(waiting, batch_size)):
        if good := [found for _, found in batch if isinstance(found, DecodedClip)]:
            with torch.inference_mode():
                latents = model([torch.from_numpy(found.frames) for found in good]).cpu().numpy()  # (B, T, H, W, D)
            for decoded_clip, clip in zip(good, latents, strict=True):
                mask = decoded_clip.mask
                calibrator.add(clip, int(step_valid(mask, len(mask) // len(clip)).sum()))
        for _, found in batch:
            on_clip(not isinstance(found, DecodedClip))
    return calibrator.fields()
