"""Where an encoder comes from: a hub name, a local folder, or a stated architecture with seeded random weights.

What the user states is checked against what is loaded: another encoder than the stated one, or a checkpoint that lacks
weights, is an error before anything is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from flcache.encoder.context import ContextRule
from flcache.encoder.families import Family, check_size, family_of
from flcache.encoder.model import LatentVideoModel
from flcache.encoder.options import Dtype, EncoderSource
from flcache.encoder.processing import load_processor, output_size
from flcache.encoder.torchvision_ops import import_transformers
from flcache.errors import EncoderError


def load_encoder(
    source: EncoderSource,
    *,
    context: ContextRule | None = None,
    trainable: bool | Sequence[str] = False,
    device: str = "cpu",
    compile: bool = False,
) -> LatentVideoModel:
    """The encoder that `source` names, on `device`, in eval mode; its forward pass by `torch.compile` if `compile`.

    Raises EncoderError when it is absent, incomplete or not the stated one.
    """
    source = replace(source, dtype=pick_dtype(source.dtype, device, trains=bool(trainable)))
    model, missing = load_pretrained(source) if source.name else (_random(source), [])
    family = family_of(model.config.model_type, source.leading_tokens)
    check_stated(source.architecture, model.config)
    _check_complete(source, family, missing)
    loaded = _latent_model(model, source, context, trainable).eval().to(device)
    if source.checkpoint_activations and loaded.trainable:
        _checkpoint_activations(model)
    if compile:
        loaded.compile_encoder()
    return loaded


def load_pretrained(source: EncoderSource) -> tuple[Any, list[str]]:
    """The whole model that `source.name` names, or its image tower if it has two, and the sorted names of the weights
    that its checkpoint lacks."""
    options = {"dtype": dtype_of(source.dtype), "output_loading_info": True}
    tower = _image_tower(_load(import_transformers().AutoConfig, source))
    options |= {"config": tower} if tower else {}
    model, information = _load(import_transformers().AutoModel, source, **options)
    return model, sorted(information["missing_keys"])


def describe_encoder(
    source: EncoderSource, *, trainable: bool | Sequence[str] = False, context: ContextRule | None = None
) -> LatentVideoModel:
    """The stated architecture, else that of `source.name`, on torch's `meta` device: without weights.

    Raises EncoderError where its processor does not fit it.
    """
    if source.architecture:
        source, config = replace(source, name=None), _stated_config(source)
    else:
        config = _load(import_transformers().AutoConfig, source)
        config = _image_tower(config) or config
    with torch.device("meta"):
        model = import_transformers().AutoModel.from_config(config)
    described = _latent_model(model, source, context, trainable)
    check_size(described.family, config, *output_size(described.processor))
    return described


def _latent_model(
    model: Any, source: EncoderSource, context: ContextRule | None, trainable: bool | Sequence[str]
) -> LatentVideoModel:
    """The part of `model` that encodes, with its processor."""
    family = family_of(model.config.model_type, source.leading_tokens)
    encoder = model.get_submodule(family.submodule or "")
    processor = load_processor(family, model.config, source)
    return LatentVideoModel(encoder, processor, family, context=context, trainable=trainable)


def _checkpoint_activations(model: Any) -> None:
    """Of the whole `model`: a part of it has no such method. Dropout is the same when computed again."""
    if not model.supports_gradient_checkpointing:
        raise EncoderError(
            f'encoder.checkpoint_activations: transformers has none for model_type "{model.config.model_type}"; set it '
            "to false"
        )
    new_name = getattr(model, "activation_checkpointing_enable", None)  # of transformers 5.24
    (new_name or model.gradient_checkpointing_enable)({"use_reentrant": False})


def check_stated(architecture: dict[str, Any], config: Any) -> None:
    """Raises EncoderError naming every stated field that the loaded `config` contradicts."""
    wrong = [
        f"{name} is {getattr(config, name, 'absent')!r}, stated {stated!r}"
        for name, stated in architecture.items()
        if getattr(config, name, None) != stated
    ]
    if wrong:
        raise EncoderError(f"encoder: the loaded model is not the stated one: {'; '.join(wrong)}")


def _image_tower(config: Any) -> Any:
    """The config of the image tower in that of a model of two towers, such as CLIP; None for any other model."""
    tower = getattr(config, "vision_config", None)
    if tower is not None:
        tower._commit_hash = getattr(config, "_commit_hash", None)
    return tower


def _stated_config(source: EncoderSource) -> Any:
    fields = dict(source.architecture)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise EncoderError(
            'encoder: neither "encoder.name" nor "encoder.architecture.model_type" is set; name a model of the hub, a '
            "local folder, or state an architecture to build with random weights"
        )
    family_of(model_type, source.leading_tokens)
    try:
        return import_transformers().AutoConfig.for_model(model_type, **fields)
    except (TypeError, ValueError) as error:
        raise EncoderError(f"encoder.architecture: {_one_line(error)}") from error


def _random(source: EncoderSource) -> Any:
    config = _stated_config(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        model = import_transformers().AutoModel.from_config(config)
    return model.to(dtype_of(source.dtype))


def _load(auto_class: Any, source: EncoderSource, **options: Any) -> Any:
    """`from_pretrained`, from what is on this machine first, and from the hub only if it is not."""
    options |= {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        return auto_class.from_pretrained(source.name, local_files_only=True, **options)
    except (OSError, ValueError):
        pass
    try:
        return auto_class.from_pretrained(source.name, **options)
    except (OSError, ValueError) as error:
        raise EncoderError(
            f'encoder: "{source.name}" cannot be loaded, neither as a local folder nor from the hub: '
            f'{_one_line(error)}; check "encoder.name" and "encoder.revision", or download it where there is a network'
        ) from error


def _check_complete(source: EncoderSource, family: Family, missing: Sequence[str]) -> None:
    """Raises EncoderError for `missing` weights of the part that encodes: transformers draws these at random."""
    prefix = f"{family.submodule}." if family.submodule else ""
    lacking = [name for name in missing if name.startswith(prefix) and not name.startswith("pooler.")]
    if lacking:
        raise EncoderError(
            f'encoder: the checkpoint "{source.name}" lacks {len(lacking)} weights, {lacking[0]} among them; it is not '
            f"a checkpoint of this model"
        )


def pick_dtype(name: Dtype, device: str, *, trains: bool = False) -> Dtype:
    """`name`; for `auto` what it is on `device`."""
    if name != "auto":
        return name
    return "bfloat16" if has_bfloat16(device) and not trains else "float32"


def has_bfloat16(device: str) -> bool:
    """Whether `device` is a CUDA device that computes in bfloat16, and not merely emulates it."""
    if torch.device(device).type != "cuda":
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def dtype_of(name: str) -> torch.dtype:
    """The `encoder.dtype` of that name; `auto` as on a CPU. Raises EncoderError naming the known ones."""
    dtypes = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise EncoderError(f'encoder.dtype: "{name}" is none of {", ".join(dtypes)}')
    return dtypes[name]


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
