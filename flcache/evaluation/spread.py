"""Is the prediction as varied as the truth? Shows blur and collapse, which mean errors do not show.

variance_ratio   variance over clips, summed over positions, of prediction over truth: 1 is as varied as the truth, 0 is
                 the same prediction for every clip, in between is blur
effective rank   RankMe (Garrido et al. 2023, arXiv 2210.02885) of all tokens: exp of the entropy of the singular
                 values, from 1 for one direction to D for equal ones

Both are of the first `MAX_CLIPS` clips, a random sample since plans are shuffled.

Shapes: B clips, K horizons, H x W patch grid, D channels; P = H * W * D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flcache.evaluation.processes import add_exactly

MAX_CLIPS = 512
_EPSILON = 1e-7
"""Added to every share of a singular value, as in the paper."""


@dataclass(frozen=True)
class Spread:
    """Variance ratio and ranks at one horizon; the ratio is NaN where fewer than two clips reach it."""

    variance_ratio: float
    prediction_rank: float
    truth_rank: float


def effective_rank(gram: Tensor) -> float:
    """RankMe of a matrix Z from `gram` = Z'Z (D, D) float64; NaN where Z is zero or not finite."""
    if not torch.isfinite(gram).all():
        return float("nan")
    singular_values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = singular_values / singular_values.sum() + _EPSILON
    return float(torch.exp(-(shares * shares.log()).sum()))


class SpreadMoments:
    """Sums over batches from which the spread follows; memory does not grow with the number of clips."""

    def __init__(self) -> None:
        self._moments: dict[str, _Moments] = {}
        """Those of `prediction` and `truth`."""

    def add(self, prediction: Tensor, truth: Tensor, valid: Tensor, first: int) -> None:
        """Add two tensors (B, K, H, W, D) that count where `valid` (B, K); `first` as in `Gallery.add`."""
        clips = min(MAX_CLIPS - first, len(truth))
        if clips <= 0:
            return
        for name, latents in (("prediction", prediction), ("truth", truth)):
            if name not in self._moments:
                self._moments[name] = _Moments(latents)
            self._moments[name].add(latents[:clips], valid[:clips])

    def sums(self) -> dict[tuple[str, str], Tensor]:
        """All moments; additive over processes."""
        return {(of, name): tensor for of, part in self._moments.items() for name, tensor in vars(part).items()}

    def put(self, sums: Mapping[tuple[str, str], Tensor]) -> None:
        """Replace all moments."""
        for (of, name), tensor in sums.items():
            setattr(self._moments[of], name, tensor)

    def finish(self) -> list[Spread]:
        """One per horizon."""
        if not self._moments:
            return []
        prediction, truth = self._moments["prediction"], self._moments["truth"]
        ratios = (prediction.variance() / truth.variance()).tolist()
        ranks = [[effective_rank(gram) for gram in part.grams] for part in (prediction, truth)]
        return [Spread(*values) for values in zip(ratios, *ranks, strict=True)]


class _Moments:
    """Moments of one set of latents, per horizon, in float64."""

    def __init__(self, like: Tensor) -> None:
        K, D = like.shape[1], like.shape[-1]
        self.count = torch.zeros(K, dtype=torch.float64)
        self.sums = torch.zeros(like.shape[1:], dtype=torch.float64)
        self.grams = torch.zeros(K, D, D, dtype=torch.float64)

    def add(self, latents: Tensor, valid: Tensor) -> None:
        latents = (latents.cpu() if latents.device.type == "mps" else latents).double()
        valid = valid.to(latents.device)
        latents = torch.where(valid[:, :, None, None, None], latents, 0.0)
        tokens = latents.transpose(0, 1).flatten(1, 3)  # (K, B * H * W, D)
        self.count += valid.sum(0).cpu()
        add_exactly(self.sums, latents.sum(0))
        add_exactly(self.grams, tokens.mT @ tokens)

    def variance(self) -> Tensor:
        """(K,) variance over clips, summed over positions and channels; NaN for fewer than two clips."""
        explained = self.sums.square().flatten(1).sum(1) / self.count
        squares = self.grams.diagonal(dim1=1, dim2=2).sum(1)
        variance = (squares - explained).clamp(min=0) / (self.count - 1)
        return torch.where(self.count > 1, variance, torch.nan)
