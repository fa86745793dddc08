"""The calibration pass: some training clips encoded, for what the codec must know before the first is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flcache.cache import Calibrator, EncodedClip
from flcache.encoder import LatentVideoModel
from flcache.engines.stages import Decoded, encode_clips


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
    calibrator = Calibrator(hard)
    for clip in encode_clips(model, decoded, batch_size):
        if isinstance(clip, EncodedClip):
            calibrator.add(clip.latents, clip.valid_steps)
        on_clip(not isinstance(clip, EncodedClip))
    return calibrator.fields()
