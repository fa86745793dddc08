"""Regularisers that keep the latents of a trainable encoder spread out; both count the clips of all processes.

Shapes: B clips, T steps, H x W patch grid, D channels; N tokens, S slices, K knots.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from flcache.batch import send, upload
from flcache.training.options import AntiCollapse
from flcache.training.statistics import batch_moments, over_processes

SLICES = 256
KNOTS = [number * 3 / 16 for number in range(1, 17)]
"""Of the quadrature over [-3, 3], as in the paper's code: the integrand is even, and 0 at 0."""
VARIANCE_FLOOR = 1e-4
COVARIANCE_SHARE = 1 / 25
"""The paper weighs invariance, variance and covariance 25 : 25 : 1."""


def anti_collapse(kind: AntiCollapse, latents: Tensor, valid: Tensor, seed: int) -> Tensor:
    """The term that `kind` adds to the loss, from `latents` (B, T, H, W, D) whose `valid` (B, T) steps count."""
    with torch.autocast(latents.device.type, enabled=False):
        return sigreg(latents.float(), valid, seed) if kind == "sigreg" else vicreg(latents.float(), valid)


def sigreg(latents: Tensor, valid: Tensor, seed: int) -> Tensor:
    """SIGReg (LeJEPA, arXiv 2511.08544): how far the tokens are from an isotropic Gaussian.

    The mean over random unit vectors a, the slices, of the statistic of Epps and Pulley: the integral over t of
    |phi_a(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), where phi_a(t) is the mean over tokens z of exp(i t a.z), by the
    trapezoidal rule. The paper's factor N is left out: a weight then holds for any number of tokens. The slices are a
    function of `seed`.
    """
    weights = _token_weights(latents, valid)
    projected = latents.flatten(0, -2) @ _slices(latents.shape[-1], seed, latents.device)  # (N, S)
    sums = [weights @ wave(knot * projected) for knot in KNOTS for wave in (torch.cos, torch.sin)]  # 2 K of (S,)
    tokens, *found = over_processes(torch.stack([weights.sum().expand_as(sums[0]), *sums]))
    real, imaginary = (torch.stack(found) / tokens.clamp(min=1)).unflatten(0, (-1, 2)).unbind(1)  # (K, S)
    knots = upload(KNOTS, latents.device)
    normal = torch.exp(-knots.square() / 2)
    shares = torch.full_like(knots, 2 * KNOTS[0])  # of t and -t
    shares[-1] = KNOTS[0]
    distance = (real - normal[:, None]).square() + imaginary.square()
    statistic: Tensor = (shares * normal) @ distance  # (S,)
    return statistic.mean()


def vicreg(latents: Tensor, valid: Tensor) -> Tensor:
    """Variance and covariance terms of VICReg (arXiv 2105.04906), its invariance being the prediction.

    v = mean over channels of max(0, 1 - sqrt(Var(z_j) + 1e-4)), c = (1 / D) sum of the squared covariances of
    different channels, and v + c / 25 as the paper weighs them.
    """
    weights = _token_weights(latents, valid)
    mean, variance, tokens = batch_moments(latents, valid)
    unbiased = (tokens - 1).clamp(min=1)
    deviation = (variance * tokens / unbiased + VARIANCE_FLOOR).sqrt()
    centred = (latents - mean).flatten(0, -2)  # (N, D)
    covariance = over_processes((weights[:, None] * centred).T @ centred) / unbiased
    others = covariance.square().sum() - covariance.diagonal().square().sum()
    return functional.relu(1 - deviation).mean() + COVARIANCE_SHARE * others / latents.shape[-1]


def _token_weights(latents: Tensor, valid: Tensor) -> Tensor:
    """(N,) 1 for a token that counts."""
    return valid[:, :, None, None].expand(latents.shape[:-1]).flatten().float()


def _slices(width: int, seed: int, device: torch.device) -> Tensor:
    """(D, S) unit vectors, drawn on the CPU: the same on every device."""
    drawn = functional.normalize(torch.randn(width, SLICES, generator=torch.Generator().manual_seed(seed)), dim=0)
    return send(drawn.pin_memory() if device.type == "cuda" and torch.cuda.is_available() else drawn, device)
