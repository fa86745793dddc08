"""What every predictor of future latents offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Predictor(nn.Module, ABC):
    """Predicts latents, standardised per channel, at later times from those of a context."""

    @abstractmethod
    def predict(self, context: Tensor, context_times: Tensor, target_times: Tensor) -> Tensor:
        """From `context` (B, Tc, H, W, D) at (B, Tc) seconds, the latents (B, Tt, H, W, D) at (B, Tt) later seconds.

        Tc and Tt are free. Gradients flow through all of it unless the caller disables them.
        """
