"""An encoder as a Hugging Face folder: config, weights and processor, which `encoder.name` takes as it is.

One that was loaded with `encoder.leading_tokens` needs them again.
"""

from __future__ import annotations

import os

import torch

from flcache.encoder.identity import hard_keys, without_origin
from flcache.encoder.loading import load_encoder
from flcache.encoder.model import LatentVideoModel
from flcache.encoder.options import EncoderSource
from flcache.encoder.torchvision_ops import import_transformers
from flcache.errors import EncoderError


def save_encoder(model: LatentVideoModel, folder: str | os.PathLike[str]) -> None:
    """Write the part of `model` that encodes, and its processor, into `folder`.

    Heads, and what a checkpoint holds beside its encoder, are left out. Raises EncoderError if what is loaded from
    there is another encoder.
    """
    prefix = f"{model.family.submodule}." if model.family.submodule else ""
    weights = {f"{prefix}{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    with torch.device("meta"):
        whole = import_transformers().AutoModel.from_config(model.config)
    whole.save_pretrained(folder, state_dict=weights)
    model.processor.save_pretrained(folder)
    keys = hard_keys(model)
    dtype = keys["encoder"]["dtype"]
    source = EncoderSource(name=os.fspath(folder), dtype=dtype, leading_tokens=model.leading_tokens)
    again = load_encoder(source, context=model.context)
    if without_origin(hard_keys(again)) != without_origin(keys):
        raise EncoderError(f"{folder}: transformers does not load what it has saved; update it, and export again")
