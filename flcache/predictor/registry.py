"""From the options of a predictor to the predictor. Loads no torch before one is built."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from flcache.errors import ConfigError
from flcache.predictor.options import PREDICTORS, PredictorOptions, unknown

if TYPE_CHECKING:
    from flcache.predictor.interface import LatentShape, Predictor

Class = TypeVar("Class", bound="type[Predictor]")


def register_predictor(predictor: Class) -> Class:
    """A class decorator: configurations that are loaded afterwards may name `predictor` by its `kind`.

    The same class may be registered again, as when its module is reloaded. Raises ConfigError if another has the name.
    """
    known = PREDICTORS.get(predictor.kind, predictor)
    if _address(known) != _address(predictor):
        raise ConfigError(f'predictor.kind: "{predictor.kind}" is {_address(known)} already; choose another name')
    PREDICTORS[predictor.kind] = predictor
    return predictor


def predictor_class(kind: str) -> type[Predictor]:
    """The class registered as `kind`. Raises ConfigError naming the known ones."""
    if kind not in PREDICTORS:
        raise ConfigError(f"predictor.kind: {unknown(kind, PREDICTORS)}")
    found = PREDICTORS[kind]
    if isinstance(found, str):
        module, _, name = found.partition(":")
        found = getattr(import_module(module), name)
    return found


def build_predictor(options: PredictorOptions, latent_shape: LatentShape, num_actions: int | None = None) -> Predictor:
    """A fresh predictor for latents of `latent_shape` (T, H, W, D), initialised from torch's generator; without memory
    under `torch.device("meta")`. `num_actions` is how many numbers the actions of a step have, if there are any.

    Raises ConfigError if `options` do not fit the latents."""
    found = predictor_class(options.kind)
    if not options.actions:
        predictor = found(options, latent_shape)
    elif not found.takes_actions:
        raise ConfigError(f"predictor.actions: {options.kind} takes no actions; set predictor.kind=causal, or false")
    elif num_actions is None:
        raise ConfigError(
            "predictor.actions: these latents come without actions; keep them with dataset.arrays=[actions] when you "
            "encode, or set predictor.actions=false"
        )
    else:
        predictor = found(options, latent_shape, num_actions)
    if options.compile:
        predictor.compile_blocks()
    return predictor


def _address(predictor: str | type) -> str:
    return predictor if isinstance(predictor, str) else f"{predictor.__module__}:{predictor.__qualname__}"
