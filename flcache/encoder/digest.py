"""A digest of weights that does not depend on files, shards or devices."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weight_digest(module: nn.Module) -> str:
    """sha256, in hex, over name, dtype, shape and bytes of every entry of `module.state_dict()`, by name."""
    digest = hashlib.sha256()
    state = module.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
