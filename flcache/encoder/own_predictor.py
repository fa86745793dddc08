"""V-JEPA 2's own pretrained predictor, as a baseline.

It predicts masked tokens from the others (arXiv 2506.09985, section 2): here all steps after the context are masked. It
was trained on layer-normed targets (`forward_target` in app/vjepa/train.py of facebookresearch/vjepa2), so its output
lacks each token's mean and deviation; these are taken from the last step of the context at the same place.

Shapes: B clips, Tc context steps, Tt target steps, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from flcache.batch import ChannelStatistics
from flcache.encoder.digest import weight_digest
from flcache.encoder.families import FAMILIES
from flcache.encoder.loading import dtype_of, load_pretrained
from flcache.encoder.options import EncoderSource
from flcache.errors import EncoderError

NORM_EPS = 1e-5
"""Epsilon of the layer norm of V-JEPA 2's targets: torch's default."""


class OwnPredictor:
    """A function as `Predictor.predict`, on standardised latents. Ignores the times: steps count as evenly spaced."""

    def __init__(self, predictor: nn.Module, statistics: ChannelStatistics) -> None:
        self._predictor, self._statistics = predictor.eval(), statistics

    @torch.no_grad()
    def __call__(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        """context (B, Tc, H, W, D) -> (B, Tt, H, W, D)"""
        latents = self._statistics.restore(context)  # as they left the encoder
        grid = context.shape[2:4]
        steps = context.shape[1] + target_times.shape[1]
        places = torch.arange(steps * prod(grid), device=context.device).expand(len(context), -1)
        seen, masked = places.tensor_split([context.shape[1] * prod(grid)], dim=1)
        normed = self._predictor(latents.flatten(1, 3), [seen], [masked]).last_hidden_state  # (B, Tt * H * W, D)
        variance, level = torch.var_mean(latents[:, -1:], dim=-1, correction=0, keepdim=True)  # (B, 1, H, W, 1)
        return self._statistics.standardise(normed.unflatten(1, (-1, *grid)) * (variance + NORM_EPS).sqrt() + level)


def load_own_predictor(
    source: EncoderSource, hard: Mapping[str, Any], statistics: ChannelStatistics, device: str
) -> OwnPredictor | None:
    """The predictor of the checkpoint that `source` names, in float32, for latents with the hard fields `hard`.

    None where the checkpoint or its family has none, and for latents that were imported or reduced (`keep`). Raises
    EncoderError if the checkpoint cannot be loaded or is of another encoder.
    """
    made_by = _encoder_with_predictor(hard)
    if made_by is None:
        return None
    model, missing = load_pretrained(replace(source, dtype="float32"))
    family = FAMILIES.get(model.config.model_type)
    if family is None or family.predictor is None or any(name.startswith(f"{family.predictor}.") for name in missing):
        return None
    predictor = model.get_submodule(family.predictor).to(device)
    weights, dtype = made_by
    found = weight_digest(model.get_submodule(family.submodule or "").to(dtype_of(dtype)))
    if found != weights:
        raise EncoderError(
            f'encoder: "{source.name}" has other weights ({found[:12]}) than the encoder of these latents '
            f"({weights[:12]}), so its predictor is no baseline for them"
        )
    return OwnPredictor(predictor, statistics)


def _encoder_with_predictor(hard: Mapping[str, Any]) -> tuple[str, str] | None:
    """Digest and dtype of the encoder's weights in `hard`; None if no checkpoint ships a predictor of such latents."""
    match hard:
        case {"keep": _}:
            return None
        case {"encoder": {"architecture": {"model_type": str(name)}, "weights": str(weights), "dtype": str(dtype)}}:
            return (weights, dtype) if name in FAMILIES and FAMILIES[name].predictor else None
    return None
