"""Predictions that cost nothing, as functions with the signature of a predictor."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""context (B, Tc, H, W, D), context_times (B, Tc), target_times (B, Tt), in seconds -> (B, Tt, H, W, D)."""


def copy_last(context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
    """The last step of the context, at every horizon."""
    return context[:, -1:].expand(-1, target_times.shape[1], -1, -1, -1)


BASELINES: dict[str, Predict] = {"copy_last": copy_last}
"""What every evaluation compares with, by the name under which its JSON reports it."""
