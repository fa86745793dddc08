"""Frozen or trainable encoders: uint8 frames in, latents out."""

from typing import TYPE_CHECKING

from flcache.lazy import load_on_demand

if TYPE_CHECKING:
    from flcache.encoder.audit import change_future, distance
    from flcache.encoder.context import ContextRule, seen_until
    from flcache.encoder.depth import layers_above
    from flcache.encoder.digest import weight_digest
    from flcache.encoder.families import Family, register_family
    from flcache.encoder.identity import first_form, hard_keys, without_origin
    from flcache.encoder.loading import describe_encoder, has_bfloat16, load_encoder, pick_dtype
    from flcache.encoder.model import LatentVideoModel
    from flcache.encoder.options import EncoderSource
    from flcache.encoder.own_predictor import load_own_predictor
    from flcache.encoder.saving import save_encoder
else:
    __getattr__ = load_on_demand(__name__, __file__)

__all__ = [
    "ContextRule",
    "EncoderSource",
    "Family",
    "LatentVideoModel",
    "change_future",
    "describe_encoder",
    "distance",
    "first_form",
    "hard_keys",
    "has_bfloat16",
    "layers_above",
    "load_encoder",
    "load_own_predictor",
    "pick_dtype",
    "register_family",
    "save_encoder",
    "seen_until",
    "weight_digest",
    "without_origin",
]
