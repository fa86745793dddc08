"""What an encoder is, as plain data: the hard keys that decide its latents, and the soft ones that only inform."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flcache.encoder.digest import weight_digest
from flcache.encoder.model import LatentVideoModel
from flcache.encoder.processing import FIELDS, deciding_fields, processor_fields

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
"""Fields of a Hugging Face config that a spec always states; others only if they differ from their class's default. The
first specs stated these alone, so never add to the list."""

IGNORED_FIELDS = {
    # where a checkpoint comes from, and what the library does with it
    "architectures",
    "chunk_size_feed_forward",
    "dtype",
    "is_encoder_decoder",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    # heads and text decoders, which are dropped
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "id2label",
    "label2id",
    "out_features",
    "out_indices",
    "pad_token_id",
    "problem_type",
    "sep_token_id",
    "stage_names",
    # training and initialisation; latents are made in eval mode from weights that are hashed
    "attention_dropout",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "hidden_dropout_prob",
    "initializer_range",
}
"""Fields that may differ between copies of one encoder without changing its latents."""

FORM = "non-default"
"""How the fields of a spec were chosen; stored as `encoder.fields`, which the first specs lack."""


def hard_keys(model: LatentVideoModel) -> dict[str, Any]:
    """`encoder` and `processor` parts of a spec: equal keys on one machine mean equal latents."""
    encoder = {
        "architecture": architecture_fields(model.config),
        "dtype": str(next(model.encoder.parameters()).dtype).removeprefix("torch."),
        "fields": FORM,
        "revision": getattr(model.config, "_commit_hash", None),
        "weights": weight_digest(model.encoder),
        **({"compiled": True} if model.compiled else {}),  # its last bits differ
    }
    return {
        "encoder": encoder,
        "processor": {"class": type(model.processor).__name__, **processor_fields(model.processor)},
    }


def without_origin(hard: Mapping[str, Any]) -> dict[str, Any]:
    """`hard` without where its encoder came from and how it ran, which a copy of the encoder has not."""
    encoder = {name: value for name, value in hard["encoder"].items() if name not in ("revision", "compiled")}
    return {**hard, "encoder": encoder}


def architecture_fields(config: Any) -> dict[str, Any]:
    """The fields of a loaded model's Hugging Face `config` that decide its latents, as JSON values.

    With the attention kernel: the outputs of `sdpa` and `eager` differ by 1e-7 of the largest in float32.
    """
    values = config.to_dict() | {name: getattr(config, name, None) for name in ARCHITECTURE_FIELDS}
    defaults = type(config)().to_dict()
    stated = deciding_fields(values, defaults, always=ARCHITECTURE_FIELDS, never=IGNORED_FIELDS)
    return stated | {"attn_implementation": getattr(config, "_attn_implementation", None)}


def first_form(hard: Mapping[str, Any]) -> dict[str, Any]:
    """`hard` in the form of the first specs, which the fingerprints of their caches and checkpoints are taken over."""
    match hard:
        case {
            "encoder": {"fields": str(), "architecture": dict(architecture), **others},
            "processor": dict(processor),
        }:
            encoder = {**others, "architecture": _listed(architecture, ARCHITECTURE_FIELDS)}
            return {**hard, "encoder": encoder, "processor": _listed(processor, ("class", *FIELDS))}
    return dict(hard)


def _listed(fields: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in names and value is not None}
