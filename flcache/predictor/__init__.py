"""Predictors of future latents.

A kind of predictor is a class with one line in `PREDICTORS`; `register_predictor` adds one from outside. Options and
registry load without torch, so that a configuration can be read without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from flcache.predictor.options import PREDICTORS, PRESETS, FlowOptions, PredictorOptions, PredictorShape
from flcache.predictor.registry import build_predictor, predictor_class, register_predictor

__all__ = [
    "PREDICTORS",
    "PRESETS",
    "FlowOptions",
    "Forecast",
    "Predictor",
    "PredictorOptions",
    "PredictorShape",
    "build_predictor",
    "predictor_class",
    "register_predictor",
    "training_memory_bytes",
]

if TYPE_CHECKING:
    from flcache.predictor.interface import Forecast, Predictor
    from flcache.predictor.memory import training_memory_bytes
else:
    _IMPORTED_WHEN_ASKED_FOR = {"Forecast": "interface", "Predictor": "interface", "training_memory_bytes": "memory"}

    def __getattr__(name: str) -> object:
        if name not in _IMPORTED_WHEN_ASKED_FOR:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_IMPORTED_WHEN_ASKED_FOR[name]}"), name)
