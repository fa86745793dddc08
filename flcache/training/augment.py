"""Random crops and flips of live clips, the same for all frames of a clip: the motion in it stays what it was.

What is drawn for a clip follows from seed, epoch and clip, so that it depends neither on where a run was resumed nor on
the number of processes.
"""

from __future__ import annotations

import hashlib
import random

from torch import Tensor

from flcache.training.options import Augmentation


def augmented(frames: Tensor, options: Augmentation, *, seed: int, epoch: int, clip_id: str) -> Tensor:
    """`frames` (F, h, w, 3) cropped to a part of their area between `options.crop` and 1 in their aspect ratio, and
    mirrored in half of the cases if `options.flip`."""
    digest = hashlib.sha256(f"flc1/augment/{seed}/{epoch}/{clip_id}".encode()).digest()
    draw = random.Random(int.from_bytes(digest[:8], "little"))
    scale = draw.uniform(options.crop, 1.0) ** 0.5
    (top, height), (left, width) = (_part(edge, scale, draw.random()) for edge in frames.shape[1:3])
    cropped = frames[:, top : top + height, left : left + width]
    return cropped.flip(2) if options.flip and draw.random() < 0.5 else cropped


def _part(edge: int, scale: float, place: float) -> tuple[int, int]:
    """Start and length of the part of `edge` pixels that is `scale` as long and lies at `place`, from 0 to 1."""
    length = max(1, round(edge * scale))
    return int(place * (edge - length + 1)), length
