"""Predictors of future latents.

A kind of predictor is a class with one line in `PREDICTORS`; `register_predictor` adds one from outside. Options and
registry load without torch, so that a configuration can be read without it.
"""

from typing import TYPE_CHECKING

from flcache.lazy import load_on_demand

if TYPE_CHECKING:
    from flcache.predictor.interface import Forecast, Predictor
    from flcache.predictor.memory import training_memory_bytes
    from flcache.predictor.options import PREDICTORS, PRESETS, FlowOptions, PredictorOptions, PredictorShape
    from flcache.predictor.registry import build_predictor, predictor_class, register_predictor
    from flcache.predictor.saved import PredictorCard, SavedPredictor, load_predictor, save_predictor
else:
    __getattr__ = load_on_demand(__name__, __file__)

__all__ = [
    "PREDICTORS",
    "PRESETS",
    "FlowOptions",
    "Forecast",
    "Predictor",
    "PredictorCard",
    "PredictorOptions",
    "PredictorShape",
    "SavedPredictor",
    "build_predictor",
    "load_predictor",
    "predictor_class",
    "register_predictor",
    "save_predictor",
    "training_memory_bytes",
]
