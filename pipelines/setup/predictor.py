"""The predictor that a configuration asks for."""

from __future__ import annotations

from dataclasses import asdict

from flcache.config import Config
from flcache.predictor import (
    FlowOptions,
    Predictor,
    PredictorOptions,
    build_predictor,
    predictor_shape,
    training_memory_bytes,
)

Shape = tuple[int, int, int, int]
"""(T, H, W, D) of latents."""


def configured_predictor(config: Config, latent_shape: Shape) -> Predictor:
    """A fresh predictor for latents of `latent_shape`."""
    settings = config.predictor
    return build_predictor(
        settings.preset, settings.overrides, latent_shape=latent_shape, options=predictor_options(config)
    )


def configured_memory_bytes(config: Config, latent_shape: Shape) -> int:
    """Bytes of a training step on a batch of `latent_shape` in float32, without the encoder."""
    return training_memory_bytes(
        predictor_shape(config.predictor.preset, config.predictor.overrides),
        predictor_options(config),
        latent_shape=latent_shape,
        batch_size=config.training.batch_size,
        rollout_steps=config.training.objective.rollout_steps,
    )


def predictor_options(config: Config) -> PredictorOptions:
    settings = config.predictor
    return PredictorOptions(
        kind=settings.kind,
        attention=settings.attention,
        checkpoint_activations=settings.checkpoint_activations,
        compile=settings.compile,
        flow=FlowOptions(**asdict(settings.flow)),
    )
