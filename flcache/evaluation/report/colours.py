"""Latents as pictures: one colour basis for all clips of a split, and a heat map for errors.

The basis is fitted on the true targets and used for all pictures, so that a colour means the same latent in all of
them.

Shapes: N latent vectors, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

from flcache.errors import DataError

DEVIATIONS = 2.0
"""So many standard deviations from the mean, a colour is three quarters of the way from grey to full."""
HEAT = "magma"
MAX_CLIPS = 512
"""The basis is fitted on the first clips of the split, a random sample since plans are shuffled."""


@dataclass(frozen=True)
class ColourBasis:
    """Three directions in latent space, shown as red, green and blue."""

    mean: Tensor
    """(D,)"""
    axes: Tensor
    """(D, 3) principal components, each divided by `DEVIATIONS` of its standard deviations."""
    explained: float
    """Fraction of the variance in the three directions."""

    def paint(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents (..., D) as colours (..., 3): grey at the mean, limited by tanh."""
        projected = (latents.float().cpu() - self.mean) @ self.axes
        return _bytes((projected.tanh() + 1) / 2)


class TargetMoments:
    """Sums over batches of targets, for their principal components."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, targets: Tensor) -> None:
        """Add `targets` (..., D)."""
        flat = targets.flatten(0, -2).float().cpu()
        self.count += len(flat)
        self._sum += flat.sum(0, dtype=torch.float64)
        self._products += (flat.T @ flat).double()

    def basis(self) -> ColourBasis:
        """The first three principal components, each with its largest entry positive. Raises DataError without data."""
        if self.count == 0:
            raise DataError("no targets to show: every clip of the split ends before its context does")
        mean = self._sum / self.count
        covariance = self._products / self.count - torch.outer(mean, mean)
        variances, vectors = torch.linalg.eigh(covariance)
        variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)[:, :3]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        deviations = variances[:3].sqrt().clamp(min=1e-6)
        axes = vectors * largest.sign() / (DEVIATIONS * deviations)
        explained = variances[:3].sum() / variances.sum().clamp(min=1e-12)
        return ColourBasis(mean.float(), axes.float(), float(explained))


def heat(errors: Tensor, limit: float) -> NDArray[np.uint8]:
    """Errors (...) as colours (..., 3): dark at 0, brightest from `limit` on."""
    colours = colormaps[HEAT]((errors.double().cpu() / limit).clamp(0, 1).numpy())[..., :3]
    return _bytes(torch.from_numpy(np.ascontiguousarray(colours)))


def heat_stops() -> list[str]:
    """Six colours of `heat` from 0 to its limit, as CSS."""
    colours = heat(torch.linspace(0, 1, 6), 1.0)
    return [f"rgb({red} {green} {blue})" for red, green, blue in colours.tolist()]


def _bytes(fractions: Tensor) -> NDArray[np.uint8]:
    scaled: NDArray[np.uint8] = (fractions * 255).round().to(torch.uint8).numpy()
    return scaled
