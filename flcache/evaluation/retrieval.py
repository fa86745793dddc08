"""Can the true future of a clip be told from those of other clips, given the prediction?

The prediction is compared with the true latents of every clip at the same horizon, by Euclidean distance; `rank` counts
the other clips that are as near as its own. Among the first `MAX_CLIPS` clips of the split; planning has shuffled them.
Latents of more than `WIDTH` values are reduced to that many by a count sketch (Charikar et al. 2002), which keeps
squared distances within about sqrt(2 / WIDTH), 1.6 %: memory is bounded whatever the split and the encoder.

Shapes: B clips a batch, N clips in all, K horizons, H x W patch grid, D channels.
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
    """Clips to choose from."""


class Gallery:
    """Collects true and predicted latents, batch by batch."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Tensor, Tensor, Tensor]] = []
        """Number of the first clip, truths, predictions, valid."""
        self._clips = 0

    def add(self, prediction: Tensor, truth: Tensor, valid: Tensor, first: int | None = None) -> None:
        """Two tensors (B, K, H, W, D), and where they count, `valid` (B, K).

        `first` is the number of the first clip in the split (None: it follows those added before).
        """
        first = self._clips if first is None else first
        self._clips = first + len(truth)
        clips = min(MAX_CLIPS - first, len(truth))
        if clips > 0:
            # clones: a loader uses the memory of its batches again
            kept = [sketch(latents[:clips]).cpu().clone() for latents in (truth, prediction)]
            self._parts.append((first, kept[0], kept[1], valid[:clips].cpu()))

    @classmethod
    def join(cls, galleries: Iterable[Gallery]) -> Gallery:
        """The clips of all, in their order in the split."""
        joined = cls()
        joined._parts = sorted((part for each in galleries for part in each._parts), key=lambda part: part[0])
        return joined

    def finish(self) -> list[Retrieval]:
        """One for each horizon."""
        if not self._parts:
            return []
        truths, predictions, valid = (torch.cat(parts) for parts in list(zip(*self._parts, strict=True))[1:])
        return [_retrieve(predictions[valid[:, k], k], truths[valid[:, k], k]) for k in range(valid.shape[1])]


def sketch(latents: Tensor) -> Tensor:
    """(B, K, H, W, D) to (B, K, P) with P of at most WIDTH, float32; distances are kept, up to the width's error."""
    flat = latents.flatten(2).float()
    values = flat.shape[2]
    if values <= WIDTH:
        return flat
    generator = torch.Generator().manual_seed(SEED)
    buckets = torch.randint(WIDTH, (values,), generator=generator).to(flat.device)
    signs = (2 * torch.randint(2, (values,), generator=generator) - 1).to(flat)
    return flat.new_zeros(*flat.shape[:2], WIDTH).index_add_(2, buckets, flat * signs)


def ranks(predictions: Tensor, truths: Tensor) -> Tensor:
    """(N,) other rows of `truths` (N, P) as near to each row of `predictions` (N, P) as its own, or nearer."""
    predictions, truths = predictions.double(), truths.double()
    # squared distances up to what is the same for all truths
    distances = truths.square().sum(1) - 2 * predictions @ truths.T  # (N, N)
    return (distances <= distances.diagonal()[:, None]).sum(1) - 1


def _retrieve(predictions: Tensor, truths: Tensor) -> Retrieval:
    found = ranks(predictions, truths)
    at_1, at_5 = ((found < nearest).double().mean().item() for nearest in (1, 5))
    return Retrieval(at_1, at_5, len(found))
