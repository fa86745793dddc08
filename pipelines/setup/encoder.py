"""The configured encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flcache.cache import reduced_shape, reduction_fields, without_times
from flcache.config import Config
from flcache.encoder import LatentVideoModel, first_form, hard_keys, load_encoder


def load_configured_encoder(
    config: Config, *, trainable: bool | Sequence[str] = False, device: str
) -> LatentVideoModel:
    """The encoder of the configuration on `device`, in its context mode. Raises EncoderError."""
    rule, device = config.encode.context, pick_device(device)
    return load_encoder(config.encoder, context=rule, trainable=trainable, device=device)


def hard_spec(config: Config, model: LatentVideoModel) -> dict[str, Any]:
    """Everything that decides the latents, but a calibration: the part of a spec that is hashed."""
    frames = config.clip.frames
    steps, shape = model.num_steps(frames), model.latent_shape(frames)
    keep = reduction_fields(shape, pool=config.encode.keep.pool, pca=config.encode.keep.pca)
    stored = reduced_shape(keep, "encode.keep") if keep else shape
    return {
        **hard_keys(model),
        "clip": config.clip.as_dict(),
        "context": model.context.as_dict(steps),
        "layout": {"shape": list(stored), "tubelet_size": frames // steps},
        "codec": config.cache.codec,
        **({"keep": keep} if keep else {}),
    }


def earlier_forms(hard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`hard` as earlier specs stated it: caches and checkpoints of then have the fingerprints of these."""
    displayed = without_times(hard)
    return [displayed, first_form(displayed)]


def pick_device(device: str) -> str:
    """`auto` is CUDA where there is one, then Apple's MPS, then the CPU."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
