"""Predictors of future latents.

Every predictor has one method for evaluation, `predict(context (B, Tc, H, W, D), context_times (B, Tc), target_times
(B, Tt)) -> (B, Tt, H, W, D)`, on standardised latents and times in seconds.
"""

from typing import TYPE_CHECKING

from flcache.lazy import load_on_demand

if TYPE_CHECKING:
    from flcache.predictor.causal import CausalPredictor
    from flcache.predictor.cross_attention import CrossAttentionPredictor
    from flcache.predictor.flow_matching import FlowMatchingPredictor, FlowOptions
    from flcache.predictor.interface import Predictor
    from flcache.predictor.memory import training_memory_bytes
    from flcache.predictor.parallel import ParallelPredictor
    from flcache.predictor.presets import PRESETS, PredictorOptions, PredictorShape, build_predictor, predictor_shape
else:
    __getattr__ = load_on_demand(__name__, __file__)

__all__ = [
    "PRESETS",
    "CausalPredictor",
    "CrossAttentionPredictor",
    "FlowMatchingPredictor",
    "FlowOptions",
    "ParallelPredictor",
    "Predictor",
    "PredictorOptions",
    "PredictorShape",
    "build_predictor",
    "predictor_shape",
    "training_memory_bytes",
]
