"""How deep in an encoder a parameter lies, for learning rates that fall from layer to layer."""

from __future__ import annotations

from torch import nn

from flcache.encoder.model import LatentVideoModel
from flcache.errors import EncoderError


def layers_above(model: LatentVideoModel) -> dict[nn.Parameter, int]:
    """For each parameter its distance from the latents in layers: 0 behind the last layer, as in a final norm, 1 in the
    last layer, and in the embeddings one more than in the first (BEiT, arXiv 2106.08254).

    Raises EncoderError for an encoder without a list of `num_hidden_layers` layers.
    """
    encoder, count = model.encoder, int(model.config.num_hidden_layers)
    lists = [name for name, each in encoder.named_modules() if isinstance(each, nn.ModuleList) and len(each) == count]
    if not lists:
        raise EncoderError(
            f'training.layer_decay: "{model.config.model_type}" has no list of {count} layers; set it to 1, and a rate '
            "for all of the encoder with training.encoder_learning_rate"
        )
    above, found = count + 1, {}
    for name, parameter in encoder.named_parameters():
        if name.startswith(f"{lists[0]}."):
            above = count - int(name.removeprefix(f"{lists[0]}.").split(".")[0])
        elif above <= count:  # modules are listed in the order of the forward pass
            above = 0
        found[parameter] = above
    return found
