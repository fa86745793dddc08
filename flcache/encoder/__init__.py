"""Frozen or trainable encoders: uint8 frames in, latents out."""

from flcache.encoder.context import MODES, seen_until
from flcache.encoder.digest import weight_digest
from flcache.encoder.identity import hard_keys
from flcache.encoder.loading import EncoderDescription, EncoderSource, describe_encoder, load_encoder
from flcache.encoder.model import LatentVideoModel
from flcache.encoder.trainable import set_trainable

__all__ = [
    "MODES",
    "EncoderDescription",
    "EncoderSource",
    "LatentVideoModel",
    "describe_encoder",
    "hard_keys",
    "load_encoder",
    "seen_until",
    "set_trainable",
    "weight_digest",
]
