"""What an encoder is, as plain data: the hard keys that decide its latents, and the soft ones that only inform."""

from __future__ import annotations

from typing import Any

from flcache.encoder.digest import weight_digest
from flcache.encoder.model import LatentVideoModel
from flcache.encoder.processing import processor_fields

ARCHITECTURE_FIELDS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "mlp_ratio",
    "hidden_act",
    "layer_norm_eps",
    "qkv_bias",
    "patch_size",
    "tubelet_size",
    "image_size",
    "crop_size",
    "num_frames",
    "frames_per_clip",
    "num_register_tokens",
    "rope_theta",
)
"""Fields of a Hugging Face config that decide latents. Not the whole config: new library versions add fields to it,
and a cache must not go stale with them."""


def hard_keys(model: LatentVideoModel) -> dict[str, Any]:
    """`encoder` and `processor` parts of a spec: equal keys on one machine mean equal latents."""
    config = model.config
    architecture = {
        name: getattr(config, name) for name in ARCHITECTURE_FIELDS if getattr(config, name, None) is not None
    }
    encoder = {
        "architecture": {name: list(v) if isinstance(v, tuple) else v for name, v in architecture.items()},
        "dtype": str(next(model.encoder.parameters()).dtype).removeprefix("torch."),
        "revision": getattr(config, "_commit_hash", None),
        "weights": weight_digest(model.encoder),
    }
    return {
        "encoder": encoder,
        "processor": {"class": type(model.processor).__name__, **processor_fields(model.processor)},
    }
