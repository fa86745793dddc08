"""The configured encoder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from flcache.cache import CacheSpec, latent_differences, reduced_shape, reduction_fields, without_times
from flcache.config import Config
from flcache.encoder import (
    LatentVideoModel,
    first_form,
    hard_keys,
    has_bfloat16,
    load_encoder,
    pick_dtype,
    without_origin,
)
from flcache.errors import ConfigError, SpecMismatch

from .progress import is_main_process

_BATCH = 8
_MOST_IN_BATCH, _PATCHES_IN_BATCH = 64, 2**16
"""On a GPU: 32 clips of V-JEPA 2 ViT-L at 256 px and 16 frames, which an H100 encodes twice as fast as 8 by 8."""


def load_configured_encoder(
    config: Config, *, trainable: bool | Sequence[str] = False, device: str
) -> LatentVideoModel:
    """The encoder of the configuration on `device`, in its context mode. Raises EncoderError."""
    rule, device = config.encode.context, pick_device(device)
    if config.encoder.dtype == "auto":
        print_choice("encoder.dtype", pick_dtype("auto", device, trains=bool(trainable)), device)
    compiled = config.encode.compile and not trainable
    return load_encoder(config.encoder, context=rule, trainable=trainable, device=device, compile=compiled)


def pick_precision(precision: str, device: str) -> str:
    """`training.precision`; for `auto` what it is on `device`."""
    if precision != "auto":
        return precision
    return "bf16" if has_bfloat16(device) else "no"


def print_choice(key: str, chosen: str, device: str) -> None:
    """Say, on stderr and once for all processes, what `auto` was taken for."""
    if is_main_process():
        print(f"Notice: {key}=auto is {chosen} on {device}", file=sys.stderr)


def hard_spec(config: Config, model: LatentVideoModel, arrays: Mapping[str, int]) -> dict[str, Any]:
    """The hashed part of a spec, without calibration: everything that decides the latents. `arrays` are those of the
    videos' frames, with the numbers of a row of each."""
    frames = config.clip.frames
    steps, shape = model.num_steps(frames), model.latent_shape(frames)
    keep = reduction_fields(shape, pool=config.encode.keep.pool, pca=config.encode.keep.pca)
    stored = reduced_shape(keep, "encode.keep") if keep else shape
    layout = {"shape": list(stored), "tubelet_size": frames // steps}
    if arrays:
        layout["arrays"] = {name: [steps, frames // steps * width] for name, width in arrays.items()}
    return {
        **hard_keys(model),
        "clip": config.clip.as_dict(),
        "context": model.context.as_dict(steps),
        "layout": layout,
        "codec": config.cache.codec,
        **({"keep": keep} if keep else {}),
    }


def check_encoder(hard: Mapping[str, Any], model: LatentVideoModel, where: str) -> None:
    """Raises SpecMismatch if `model` is not the encoder of the spec `hard`, wherever it was loaded from."""
    kept, now = without_origin(hard), without_origin(hard_keys(model))
    spec, found = (CacheSpec({part: of[part] for part in ("encoder", "processor")}, {}) for of in (kept, now))
    if different := latent_differences(spec, found):
        names = ", ".join(line.partition(":")[0] for line in different)
        raise SpecMismatch(f"{where}: made by another encoder than this one: {names} differ; name the one that made it")


def with_weights(hard: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """`hard` once its encoder has other weights, and so no revision."""
    return {**hard, "encoder": {**hard["encoder"], "revision": None, "weights": digest}}


def earlier_forms(hard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`hard` in the forms of earlier specs, which the fingerprints of older caches and checkpoints are taken over."""
    displayed = without_times(hard)
    return [displayed, first_form(displayed)]


def encode_batch_size(config: Config, shape: Sequence[int]) -> int:
    """Clips per forward pass, of an encoder that gives (T, H, W, D) for each."""
    if config.encode.batch_size != "auto":
        return config.encode.batch_size
    if not pick_device(config.encode.device).startswith("cuda"):
        return _BATCH
    return max(1, min(_MOST_IN_BATCH, _PATCHES_IN_BATCH // prod(shape[:3])))


def pick_device(device: str) -> str:
    """`device`; for `auto` CUDA where there is one, then Apple's MPS, then the CPU.

    Raises ConfigError if this machine does not have it.
    """
    gpus, mps = torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if gpus else "mps" if mps else "cpu"
    device = device.removesuffix(":0") if device in ("cpu:0", "mps:0") else device  # as accelerate writes them
    here = [*(f"cuda:{number}" for number in range(gpus)), *(["mps"] if mps else []), "cpu"]
    if device not in here and not (device == "cuda" and gpus):
        raise ConfigError(
            f'device "{device}": this machine has {", ".join(here)}; set training.device or encode.device to one of '
            "them, or to auto"
        )
    return device
