"""Probes: classifiers of the dataset's labels, trained on true latents.

linear      a linear layer on the mean over steps and positions
attentive   a learned query attends to all tokens, then a linear layer (the attentive probe of V-JEPA, arXiv 2404.08471,
            with one block and no MLP)

They are then tested on predicted and on copied latents in place of the true ones: the remaining accuracy shows how much
of the labels a prediction keeps. Copies keep every label that does not depend on motion.

Shapes: B clips, T steps, H x W patch grid, D channels, L = T * H * W tokens, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from flcache.errors import DataError
from flcache.evaluation.bootstrap import Interval, number_videos, share_interval
from flcache.evaluation.options import ProbeOptions

ATTENTION_WIDTH = 64
"""Channels per head of the attentive probe if D is a multiple of it; otherwise it has one head."""


@dataclass(frozen=True)
class Labelled:
    """Latents of clips with a known label."""

    latents: Tensor
    """(B, T, H, W, D) standardised."""
    valid: Tensor
    """(B, T) bool; a clip has at least one."""
    labels: Tensor
    """(B,) int64 class numbers."""


@dataclass(frozen=True)
class Accuracy:
    """The share of right answers of one probe on one kind of latents, with its 95 % interval."""

    accuracy: float
    interval: Interval


class LinearProbe(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(channels, classes)

    def forward(self, latents: Tensor, valid: Tensor) -> Tensor:
        """(B, T, H, W, D) and (B, T) to logits (B, C)."""
        weights = valid.to(latents.dtype) / valid.sum(1, keepdim=True)  # (B, T)
        pooled = torch.einsum("bt,btd->bd", weights, latents.mean(dim=(2, 3)))
        logits: Tensor = self.classify(pooled)
        return logits


class AttentiveProbe(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.heads = channels // ATTENTION_WIDTH if channels % ATTENTION_WIDTH == 0 else 1
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Parameter(torch.randn(channels) * channels**-0.5)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.classify = nn.Linear(channels, classes)

    def forward(self, latents: Tensor, valid: Tensor) -> Tensor:
        """(B, T, H, W, D) and (B, T) to logits (B, C)."""
        tokens = self.norm(latents.flatten(1, 3))  # (B, L, D)
        keys, values = (self._by_head(part) for part in self.key_value(tokens).chunk(2, dim=-1))
        queries = self._by_head(self.query.expand(len(tokens), 1, -1))  # (B, heads, 1, D / heads)
        per_step = tokens.shape[1] // valid.shape[1]
        mask = valid.repeat_interleave(per_step, dim=1)[:, None, None]  # (B, 1, 1, L)
        attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        logits: Tensor = self.classify(attended.transpose(1, 2).flatten(1))
        return logits

    def _by_head(self, tokens: Tensor) -> Tensor:
        """(B, L, D) to (B, heads, L, D / heads)."""
        parts: Tensor = tokens.reshape(*tokens.shape[:2], self.heads, -1)
        return parts.transpose(1, 2)


def train_probes(
    epoch: Callable[[], Iterable[Labelled]],
    *,
    channels: int,
    classes: int,
    options: ProbeOptions,
    seed: int,
    device: str = "cpu",
) -> dict[str, nn.Module]:
    """Both probes by name, trained for `options.epochs` epochs; each call of `epoch` streams the training clips.

    Raises DataError if there are none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probes: dict[str, nn.Module] = {
            "linear": LinearProbe(channels, classes).to(device),
            "attentive": AttentiveProbe(channels, classes).to(device),
        }
    parameters = [parameter for probe in probes.values() for parameter in probe.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    for number in range(options.epochs):
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * (1 + math.cos(math.pi * number / options.epochs)) / 2
        if not _train_epoch(probes, epoch(), optimiser, device):
            raise DataError('no training clip has a label to probe for; "dataset.train" must annotate labels')
    return {name: probe.eval() for name, probe in probes.items()}


def _train_epoch(
    probes: Mapping[str, nn.Module], batches: Iterable[Labelled], optimiser: torch.optim.Optimizer, device: str
) -> int:
    """One step per batch; returns the number of clips."""
    clips = 0
    for batch in batches:
        latents, valid, labels = (part.to(device) for part in (batch.latents, batch.valid, batch.labels))
        # the probes share no parameter, so the sum trains each as if alone
        loss = torch.stack([cross_entropy(probe(latents, valid), labels) for probe in probes.values()]).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        clips += len(labels)
    return clips


class ProbeTest:
    """Counts right answers of probes on several kinds of latents of one clip; `video_of` as in `number_videos`."""

    def __init__(self, probes: Mapping[str, nn.Module], video_of: Mapping[str, str] | None = None) -> None:
        self._probes, self._video_of = probes, video_of
        self._ids: list[str] = []
        self._right: dict[tuple[str, str], list[Tensor]] = {}
        self._labels: list[Tensor] = []

    @torch.no_grad()
    def add(self, kinds: Mapping[str, Tensor], valid: Tensor, labels: Tensor, ids: Sequence[str]) -> None:
        """Test on latents (B, T, H, W, D) of each kind, all of the clips `ids` with these `labels` (B,)."""
        self._labels.append(labels.cpu())
        self._ids += ids
        for name, probe in self._probes.items():
            for kind, latents in kinds.items():
                answers = probe(latents, valid).argmax(dim=1)
                self._right.setdefault((name, kind), []).append((answers == labels).cpu())

    @property
    def clips(self) -> int:
        return sum(map(len, self._labels))

    @property
    def chance(self) -> float:
        """Accuracy of always naming the most frequent label of the tested clips."""
        return torch.cat(self._labels).bincount().max().item() / self.clips

    def accuracies(self) -> dict[str, dict[str, Accuracy]]:
        """By probe and kind of latents. Raises DataError where no clip was tested."""
        if not self.clips:
            raise DataError("no clip of the tested split has a label that a training clip has, so nothing is probed")
        videos = number_videos(self._ids, self._video_of)
        accuracies: dict[str, dict[str, Accuracy]] = {name: {} for name in self._probes}
        for (name, kind), parts in self._right.items():
            right = torch.cat(parts)
            accuracies[name][kind] = Accuracy(right.double().mean().item(), share_interval(right, videos))
        return accuracies
