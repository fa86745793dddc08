"""Is the prediction as varied as the truth? Blur and collapse show here, and in no mean error.

variance_ratio   variance over clips at each position, summed, of prediction against truth: 1 is as varied as the truth,
                 0 is the same picture for every clip, in between is blur
effective rank   RankMe (Garrido et al. 2023, arXiv 2210.02885) of all tokens: exp of the entropy of the singular
                 values, from 1 for one direction to D for all alike

Both over the first `MAX_CLIPS` clips; planning has shuffled them.

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
    """Of one horizon; NaN where fewer than two clips reach it."""

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
    """Sums from which the spread follows, batch by batch; memory does not grow with the number of clips."""

    def __init__(self) -> None:
        self._prediction: _Moments | None = None
        self._truth: _Moments | None = None
        self._clips = 0

    def add(self, prediction: Tensor, truth: Tensor, valid: Tensor, first: int | None = None) -> None:
        """Two tensors (B, K, H, W, D), and where they count, `valid` (B, K); `first` as `Gallery.add` takes it."""
        first = self._clips if first is None else first
        self._clips = first + len(truth)
        clips = min(MAX_CLIPS - first, len(truth))
        if clips <= 0:
            return
        if self._prediction is None or self._truth is None:
            self._prediction, self._truth = _Moments(truth), _Moments(truth)
        self._prediction.add(prediction[:clips], valid[:clips])
        self._truth.add(truth[:clips], valid[:clips])

    def sums(self) -> dict[tuple[str, str], Tensor]:
        """Those over the clips of several processes are the sums of theirs."""
        parts = {"prediction": self._prediction, "truth": self._truth}
        return {(of, name): tensor for of, part in parts.items() if part for name, tensor in vars(part).items()}

    def put(self, sums: Mapping[tuple[str, str], Tensor]) -> None:
        """Go on from these sums."""
        for of, part in (("prediction", self._prediction), ("truth", self._truth)):
            if part and sums:
                vars(part).update({name: sums[of, name] for name in vars(part)})

    def finish(self) -> list[Spread]:
        """One for each horizon."""
        if self._prediction is None or self._truth is None:
            return []
        ratios = (self._prediction.variance() / self._truth.variance()).tolist()
        grams = zip(self._prediction.grams, self._truth.grams, strict=True)
        return [
            Spread(ratio, effective_rank(predicted), effective_rank(true))
            for ratio, (predicted, true) in zip(ratios, grams, strict=True)
        ]


class _Moments:
    """Of one set of latents, per horizon, in float64."""

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
        """(K,) over clips, summed over positions and channels; NaN for fewer than two clips."""
        explained = self.sums.square().flatten(1).sum(1) / self.count
        squares = self.grams.diagonal(dim1=1, dim2=2).sum(1)
        variance = (squares - explained).clamp(min=0) / (self.count - 1)
        return torch.where(self.count > 1, variance, torch.nan)
