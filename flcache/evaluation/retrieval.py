"""Can the true future of a clip be told from those of other clips, given the prediction?

The prediction is compared with the true latents of every clip at the same horizon, by Euclidean distance; its rank is
the number of other clips that are as near as its own. Only the first `MAX_CLIPS` clips of the split count, a random
sample since plans are shuffled. To bound the memory, latents of more than `WIDTH` values are reduced to that many by a
count sketch (Charikar et al. 2002), which keeps squared distances within about sqrt(2 / WIDTH), 1.6 %.

Shapes: B clips per batch, N clips in all, K horizons, H x W patch grid, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_CLIPS = 512
WIDTH = 8192
SEED = 0


@dataclass(frozen=True)
class Retrieval:
    """Fractions of clips whose true future is the nearest, and among the five nearest; NaN without clips."""

    at_1: float
    at_5: float
    gallery: int
    """Number of clips to choose from."""


class Gallery:
    """Collects true and predicted latents, batch by batch."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Tensor, Tensor, Tensor]] = []
        """Number of the first clip, truths, predictions, valid."""

    def add(self, prediction: Tensor, truth: Tensor, valid: Tensor, first: int) -> None:
        """Add two tensors (B, K, H, W, D) that count where `valid` (B, K); `first` is the first clip's number in the
        split."""
        clips = min(MAX_CLIPS - first, len(truth))
        if clips > 0:
            # clones, since a loader reuses the memory of its batches
            kept = [sketch(latents[:clips]).cpu().clone() for latents in (truth, prediction)]
            self._parts.append((first, kept[0], kept[1], valid[:clips].cpu()))

    @classmethod
    def join(cls, galleries: Iterable[Gallery]) -> Gallery:
        """The clips of all `galleries`, in the order of the split."""
        joined = cls()
        joined._parts = sorted((part for each in galleries for part in each._parts), key=lambda part: part[0])
        return joined

    def finish(self) -> list[Retrieval]:
        """One per horizon."""
        if not self._parts:
            return []
        truths, predictions, valid = (torch.cat(parts) for parts in list(zip(*self._parts, strict=True))[1:])
        return [_retrieve(predictions[valid[:, k], k], truths[valid[:, k], k]) for k in range(valid.shape[1])]


def sketch(latents: Tensor) -> Tensor:
    """(B, K, H, W, D) to (B, K, P) float32 with P of at most `WIDTH`, by a count sketch."""
    flat = latents.flatten(2).float()
    values = flat.shape[2]
    if values <= WIDTH:
        return flat
    generator = torch.Generator().manual_seed(SEED)
    buckets = torch.randint(WIDTH, (values,), generator=generator).to(flat.device)
    signs = (2 * torch.randint(2, (values,), generator=generator) - 1).to(flat)
    return flat.new_zeros(*flat.shape[:2], WIDTH).index_add_(2, buckets, flat * signs)


def ranks(predictions: Tensor, truths: Tensor) -> Tensor:
    """(N,) how many other rows of `truths` (N, P) are at least as near to a row of `predictions` (N, P) as its own."""
    predictions, truths = predictions.double(), truths.double()
    # squared distances, without the term that is equal for all truths
    distances = truths.square().sum(1) - 2 * predictions @ truths.T  # (N, N)
    return (distances <= distances.diagonal()[:, None]).sum(1) - 1


def _retrieve(predictions: Tensor, truths: Tensor) -> Retrieval:
    found = ranks(predictions, truths)
    return Retrieval((found < 1).double().mean().item(), (found < 5).double().mean().item(), len(found))
