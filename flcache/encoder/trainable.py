"""Which parameters train: none, all, or those that match name patterns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import nn

from flcache.errors import EncoderError


def set_trainable(module: nn.Module, trainable: bool | Sequence[str], unused: Collection[str] = ()) -> None:
    """Set `requires_grad` of every parameter of `module`; those in parts named `unused` are always frozen.

    A pattern such as `layer.11` or `layer.1?.mlp.*` picks the parameters whose own name, or that of a module above
    them, matches. Raises EncoderError with near names for a pattern that picks nothing.
    """
    module.requires_grad_(False)
    used = {name: each for name, each in module.named_parameters() if not set(name.split(".")) & set(unused)}
    for pattern in (["*"] if trainable else []) if isinstance(trainable, bool) else trainable:
        picked = [parameter for name, parameter in used.items() if _matches(name, pattern)]
        if not picked:
            raise EncoderError(_no_match(module, pattern))
        for parameter in picked:
            parameter.requires_grad_(True)


def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def _no_match(module: nn.Module, pattern: str) -> str:
    names = [name for name, _ in module.named_modules() if name] + [name for name, _ in module.named_parameters()]
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
    return f'encoder_trainable: "{pattern}" matches no parameter that the latents depend on; near: {", ".join(near)}'
