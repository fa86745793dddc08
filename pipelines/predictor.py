"""The predictor that a configuration asks for."""

from __future__ import annotations

from dataclasses import asdict

from flcache.config import Config
from flcache.predictor import FlowOptions, Predictor, PredictorOptions, build_predictor


def configured_predictor(config: Config, latent_shape: tuple[int, int, int, int]) -> Predictor:
    """A fresh predictor for latents of `latent_shape` (T, H, W, D)."""
    settings = config.predictor
    options = PredictorOptions(
        kind=settings.kind,
        attention=settings.attention,
        checkpoint_activations=settings.checkpoint_activations,
        compile=settings.compile,
        flow=FlowOptions(**asdict(settings.flow)),
    )
    return build_predictor(settings.preset, settings.overrides, latent_shape=latent_shape, options=options)
