"""The calibration pass: some training clips encoded, for what the codec must know before the first is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flcache.batch import step_valid
from flcache.cache import Calibrator
from flcache.encoder import LatentVideoModel
from flcache.engines.shard_task import ClipTask, decoded_windows, encode_window
from flcache.videos import DecodedClip, DecodePool


def calibrate(
    hard: Mapping[str, Any],
    clips: Sequence[ClipTask],
    model: LatentVideoModel,
    pool: DecodePool,
    *,
    batch_size: int,
    on_clip: Callable[[bool], None],
) -> dict[str, Any]:
    """The `calibration` of a spec whose other hard fields are `hard`, from the `clips` that can be decoded.

    `on_clip` is called once a clip, with whether it failed. Raises CacheError if all of them do.
    """
    calibrator = Calibrator(hard)
    for window in decoded_windows(pool, clips, batch_size):
        latents = encode_window(model, window)
        for _, decoded in window:
            if isinstance(decoded, DecodedClip):
                calibrator.add(next(latents), int(step_valid(decoded.mask, model.tubelet_size).sum()))
            on_clip(not isinstance(decoded, DecodedClip))
    return calibrator.fields()
