"""A trained predictor as a folder: written once, read without executing anything.

    predictor.safetensors   its weights, and mean and deviation of every channel of the latents
    predictor.json          kind and sizes, which latents it fits, size and digest of the weights; sealed

Latents go in and come out as an encoder gives them, or a cache stores them: standardising is done inside.

Shapes: B clips, Tc context and Tt target steps, T steps of a clip of its training, H x W patch grid, D channels, A
numbers of a step's actions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from flcache.batch import ChannelStatistics
from flcache.errors import ConfigError, PredictorError
from flcache.leak import legal_boundaries
from flcache.predictor.interface import LatentShape, Predictor
from flcache.predictor.options import PREDICTORS, FlowOptions, PredictorOptions
from flcache.predictor.registry import build_predictor
from flcache.sealed import OF_BAD_CONTENT, check_seal, file_digest, flush, one_line, plain_file, read_json, sealed

WEIGHTS, CARD = "predictor.safetensors", "predictor.json"
FORMAT = "flp1"
_PREDICTOR = "predictor."
_AGAIN = 'write it anew with "flcache export"'


@dataclass(frozen=True)
class PredictorCard:
    """What a saved predictor is, and which latents it fits."""

    options: PredictorOptions
    latent_shape: LatentShape
    """(T, H, W, D) of the clips it was trained on; it sees and predicts no more steps than these."""
    times: tuple[float, ...] | None
    """(T,) seconds of the steps of such a clip; None where they follow from the video."""
    seen_until: tuple[int, ...]
    """(T,) the last step that each step has seen: where contexts may end follows from it."""
    context_steps: int
    """Steps of the context that it was evaluated with."""
    leak: bool
    """Whether its contexts had seen the future."""
    fingerprint: str
    """Of the latents that it takes."""
    latents: Mapping[str, Any]
    """The spec that this is the fingerprint of: encoder, processor, clip rule, context mode."""
    target_weights: str | None
    """Digest of the weights of the encoder that made the targets, where that was another."""
    precision: str
    """The `training.precision` it was trained in. Whoever wants the same enters it around the calls."""
    step: int
    """Optimiser steps of its training."""
    leading_tokens: int | None = None
    """The `encoder.leading_tokens` of the encoder, where flcache does not know its tokens."""

    @property
    def num_actions(self) -> int | None:
        """A, where the latents come with actions."""
        match self.latents:
            case {"layout": {"arrays": {"actions": [_, int(numbers)]}}}:
                return numbers
        return None

    @property
    def context_limits(self) -> list[int]:
        """How many steps a context may have."""
        steps = self.latent_shape[0]
        return list(range(1, steps)) if self.leak else legal_boundaries(self.seen_until)


class SavedPredictor:
    """A function from raw latents to raw latents. Its parameters take no gradients; those of its input flow through.

    `card` says what it is; `predictor`, in eval mode, takes and gives standardised latents.
    """

    def __init__(self, predictor: Predictor, statistics: ChannelStatistics, card: PredictorCard) -> None:
        self.predictor = predictor.eval().requires_grad_(False)
        self.statistics = statistics
        self.card = card

    def __call__(
        self,
        context: Tensor,
        context_times: Tensor | None = None,
        target_times: Tensor | None = None,
        *,
        seeds: Sequence[int] | None = None,
        actions: Tensor | None = None,
    ) -> Tensor:
        """From `context` (B, Tc, H, W, D), the latents (B, Tt, H, W, D) after it, float32.

        Times are (B, Tc) and (B, Tt) seconds from the first frame of the clip; without them all that remains of a clip
        is predicted, at the times of the training clips. A generative predictor draws one future; a clip's seed decides
        it. One that was trained with actions takes them raw, (B, Tc + Tt, A), the last of which counts for nothing.
        Raises PredictorError for a context that is too long, has seen the future, or is not of such latents.
        """
        self._check(context, target_times)
        context_times, target_times = self._times(context, context_times, target_times)
        self._check_actions(actions, (len(context), context.shape[1] + target_times.shape[1]))
        given = self.statistics.standardise(context), context_times, target_times
        conditions = () if actions is None else (actions,)
        if seeds is None or not self.predictor.generative:
            return self.statistics.restore(self.predictor.predict(*given, *conditions))
        return self.statistics.restore(self.predictor.sample(*given, seeds))

    def to(self, device: torch.device | str) -> SavedPredictor:
        """This predictor, moved to `device`, where its input must then be."""
        self.predictor.to(device)
        self.statistics = ChannelStatistics(self.statistics.mean.to(device), self.statistics.std.to(device))
        return self

    def _check(self, context: Tensor, target_times: Tensor | None) -> None:
        steps, *grid = self.card.latent_shape
        if context.ndim != 5 or list(context.shape[2:]) != grid:
            raise PredictorError(
                f"a context is (B, Tc, {', '.join(map(str, grid))}) for this predictor, not {tuple(context.shape)}; "
                f"take latents of the encoder it was trained on"
            )
        given = context.shape[1]
        if given not in self.card.context_limits:
            raise PredictorError(
                f"a context of {given} steps: this predictor takes {self.card.context_limits} of its {steps} steps; "
                f"others have seen the future, or leave nothing to predict"
            )
        if target_times is not None and not 1 <= target_times.shape[1] <= steps - given:
            raise PredictorError(
                f"{target_times.shape[1]} steps after a context of {given}: this predictor was trained on clips of "
                f"{steps} steps; ask for 1 to {steps - given}"
            )

    def _check_actions(self, actions: Tensor | None, steps: tuple[int, int]) -> None:
        wanted = (*steps, self.predictor.num_actions) if self.predictor.num_actions else None
        found = None if actions is None else tuple(actions.shape)
        if found != wanted:
            words = f"actions of {wanted}: one row a step of context and targets" if wanted else "no actions"
            raise PredictorError(f"actions of {found}: this predictor takes {words}; give them so")

    def _times(self, context: Tensor, given: Tensor | None, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """The times of context and targets, (B, Tc) and (B, Tt): those given, else those of the training clips."""
        if given is not None and targets is not None:
            return given, targets
        if given is not None or targets is not None:
            raise PredictorError("the times of context and targets belong together; give both or none")
        if self.card.times is None:
            raise PredictorError("the times of the steps follow from the video here; give those of context and targets")
        times = torch.tensor(self.card.times, device=context.device).expand(len(context), -1)
        steps = context.shape[1]
        return times[:, :steps], times[:, steps:]


def save_predictor(
    folder: str | os.PathLike[str], predictor: Predictor, statistics: ChannelStatistics, card: PredictorCard
) -> None:
    """Write the files of `predictor` into a new `folder`."""
    path = Path(folder)
    path.mkdir(parents=True)
    weights = {f"{_PREDICTOR}{name}": tensor for name, tensor in predictor.state_dict().items()}
    weights |= {"mean": statistics.mean, "std": statistics.std}
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    safetensors.torch.save_file(whole, path / WEIGHTS, metadata={"format": "pt"})
    content = {"format": FORMAT, **asdict(card), "weights": file_digest(path / WEIGHTS)}
    (path / CARD).write_text(sealed(content), encoding="utf-8")
    flush(path)


def load_predictor(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> SavedPredictor:
    """The predictor in `folder`, on `device`. Raises PredictorError if there is none, or it is damaged or foreign.

    A kind of your own must be registered before.
    """
    path = Path(folder)
    if not path.is_dir():
        raise PredictorError(f'{path}: there is no such folder; "flcache export" writes one')
    with _reading(path / CARD):
        card, digest = _card(read_json(path / CARD))
    if card.options.kind not in PREDICTORS:
        raise PredictorError(
            f'{path / CARD}: no predictor of the kind "{card.options.kind}" is registered; import the module that '
            f"registers it before you load the folder"
        )
    with _reading(path / WEIGHTS):
        if file_digest(path / WEIGHTS) != digest:
            raise ValueError("its bytes are not those that were written")
        weights = safetensors.torch.load_file(plain_file(path / WEIGHTS))
        predictor = _build(card)
        statistics = ChannelStatistics(weights.pop("mean"), weights.pop("std"))
        if not statistics.mean.shape == statistics.std.shape == card.latent_shape[3:]:
            raise ValueError("mean and std are not those of its channels")
        _fill(predictor, {name.removeprefix(_PREDICTOR): tensor for name, tensor in weights.items()})
    return SavedPredictor(predictor, statistics, card).to(device)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns an error from the content of the file at `path` into a PredictorError that names the file."""
    try:
        yield
    except (ConfigError, *OF_BAD_CONTENT) as error:
        raise PredictorError(f"{path}: damaged, or no predictor of flcache: {one_line(error)}; {_AGAIN}") from error


def _card(content: dict[str, Any]) -> tuple[PredictorCard, Any]:
    """The card in a record, and the digest of the weights. Raises ValueError and the like."""
    check_seal(content)
    if (found := content.pop("format")) != FORMAT:
        raise ValueError(f"format {found!r}, but this flcache reads {FORMAT}")
    digest, options = content.pop("weights"), content.pop("options")
    T, H, W, D = content.pop("latent_shape")
    times, seen_until = content.pop("times"), tuple(map(int, content.pop("seen_until")))
    card = PredictorCard(
        options=PredictorOptions(**{**options, "flow": FlowOptions(**options["flow"])}),
        latent_shape=(T, H, W, D),
        times=None if times is None else tuple(map(float, times)),
        seen_until=seen_until,
        **content,
    )
    if len(seen_until) != T or (card.times is not None and len(card.times) != T):
        raise ValueError(f"a clip has {T} steps, but it lists {len(seen_until)} steps and {times} as their times")
    return card, digest


def _build(card: PredictorCard) -> Predictor:
    """An untrained predictor; leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        return build_predictor(replace(card.options, compile=False), card.latent_shape, card.num_actions)


def _fill(predictor: Predictor, weights: dict[str, Tensor]) -> None:
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in predictor.state_dict().items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
    if other := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise ValueError(f"its weights are not of the predictor in {CARD}, {other[0]} first")
    predictor.load_state_dict(weights)
