"""An exported model: its predictor, and the encoders that make contexts and targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flcache.cache import CacheSpec, make_spec
from flcache.encoder import ContextRule, EncoderSource, LatentVideoModel, load_encoder
from flcache.errors import PredictorError, SpecMismatch
from flcache.predictor import PredictorCard, SavedPredictor, load_predictor
from flcache.videos import ClipRule

from ..setup.encoder import check_encoder, with_weights


@dataclass(frozen=True)
class ExportedModel:
    """What `flcache export` has written, on a device."""

    predictor: SavedPredictor
    encoder: LatentVideoModel
    target_encoder: LatentVideoModel
    """The same as `encoder` unless that was trained."""
    spec: CacheSpec
    """Of the latents."""
    rule: ClipRule
    """How the clips of its training were cut."""
    device: str

    @property
    def context_steps(self) -> int:
        return self.predictor.card.context_steps

    @property
    def arrays(self) -> dict[str, int]:
        """The arrays that it takes of the `.npz` beside a video, and the numbers of a row of each."""
        return {"actions": self.spec.row_widths["actions"]} if self.predictor.predictor.num_actions else {}

    @torch.no_grad()
    def encode(self, frames: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Frames (F, h, w, 3) of a clip as latents (T, H, W, D), and as its targets: the same array if they are."""
        clip = torch.from_numpy(frames).to(self.device)[None]
        latents = self._kept(self.encoder(clip))
        return latents, latents if self.target_encoder is self.encoder else self._kept(self.target_encoder(clip))

    def _kept(self, latents: torch.Tensor) -> NDArray[np.float32]:
        """As a cache would store (1, T, H, W, D), but for the precision of its codec."""
        return self.spec.reduce(latents[0].cpu().numpy())


def open_model(folder: Path, device: str) -> ExportedModel:
    """The model in `folder`. Raises PredictorError or EncoderError where it is not whole, SpecMismatch where an encoder
    is not that of the predictor."""
    predictor = load_predictor(folder / "predictor", device)
    card = predictor.card
    match card.latents:
        case {"encoder": {"dtype": str()}, "processor": dict(), "clip": dict(clip), "context": {"mode": str()}}:
            rule = _clip_rule(clip, folder)
        case _:
            raise PredictorError(
                f"{folder / 'predictor'}: its latents were imported, so no encoder of flcache makes them of a video; "
                f"use flcache.predictor.load_predictor"
            )
    spec = make_spec(card.latents)
    encoder = target_encoder = _load(folder / "encoder", spec.hard, card, device)
    if card.target_weights is not None:
        targets = with_weights(spec.hard, card.target_weights)
        target_encoder = _load(folder / "target_encoder", targets, card, device)
    return ExportedModel(predictor, encoder, target_encoder, spec, rule, device)


def _clip_rule(clip: dict[str, Any], folder: Path) -> ClipRule:
    try:
        return ClipRule(**{name: value for name, value in clip.items() if name != "times"})
    except TypeError as error:
        raise PredictorError(f"{folder / 'predictor'}: its clip rule is none of this flcache: {error}") from error


def _load(folder: Path, hard: dict[str, Any], card: PredictorCard, device: str) -> LatentVideoModel:
    if not folder.is_dir():
        raise PredictorError(f'{folder}: no such folder; write the model anew with "flcache export"')
    dtype = hard["encoder"]["dtype"]
    source = EncoderSource(name=str(folder.resolve()), dtype=dtype, leading_tokens=card.leading_tokens)
    encoder = load_encoder(source, context=ContextRule.from_dict(hard["context"]), device=device)
    try:
        check_encoder(hard, encoder, str(folder))
    except SpecMismatch as error:
        raise SpecMismatch(f'{error}; write the model anew with "flcache export"') from error
    return encoder
