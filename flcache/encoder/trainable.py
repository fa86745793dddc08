"""Which parameters train: none, all, or those that match name patterns; never those that no latent depends on."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flcache.encoder.families import Family, patch_shape, stated_size
from flcache.errors import EncoderError


def set_trainable(module: nn.Module, trainable: bool | Sequence[str], used: Collection[str]) -> None:
    """Set `requires_grad` of the parameters of `module`; of those that are not in `used`, all are frozen.

    A pattern such as `layer.11` or `layer.1?.mlp.*` picks the parameters whose own name, or that of a module above
    them, matches. Raises EncoderError with near names for a pattern that picks nothing.
    """
    module.requires_grad_(False)
    parameters = {name: each for name, each in module.named_parameters() if name in used}
    for pattern in (["*"] if trainable else []) if isinstance(trainable, bool) else trainable:
        picked = [parameter for name, parameter in parameters.items() if _matches(name, pattern)]
        if not picked:
            raise EncoderError(_no_match(module, pattern))
        for parameter in picked:
            parameter.requires_grad_(True)


def used_parameters(encoder: nn.Module, family: Family) -> set[str]:
    """Names of the parameters that latents depend on: not those of poolers, heads and mask tokens, which would get no
    gradient; in data parallelism other processes would wait for it.

    Read from the autograd graph of one forward pass on the meta device, which computes nothing.
    """
    frames = getattr(encoder.config, family.fixed_frames) if family.fixed_frames else patch_shape(encoder.config)[0]
    edge = stated_size(encoder.config)
    dtype = next(encoder.parameters()).dtype
    pixels = torch.empty(1, frames, 3, edge, edge, device="meta", dtype=dtype)
    weights = {name: each.detach().to("meta").requires_grad_() for name, each in encoder.named_parameters()}
    buffers = {name: each.to("meta") for name, each in encoder.named_buffers()}
    with torch.enable_grad():
        latents = functional_call(
            encoder, weights | buffers, (pixels if family.video else pixels[0],)
        ).last_hidden_state
    leaves = _leaves(latents)
    return {name for name, weight in weights.items() if id(weight) in leaves}


def _leaves(tensor: Tensor) -> set[int]:
    """The `id` of every leaf that `tensor` was computed from."""
    found, seen, nodes = set(), set(), [tensor.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(id(getattr(node, "variable", None)))
            nodes += [before for before, _ in node.next_functions]
    return found


def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def _no_match(module: nn.Module, pattern: str) -> str:
    names = [name for name, _ in module.named_modules() if name] + [name for name, _ in module.named_parameters()]
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
    return f'encoder_trainable: "{pattern}" matches no parameter that the latents depend on; near: {", ".join(near)}'
