"""Options of evaluation and probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from flcache.bounds import Bound, NonNegative, Positive, PositiveFloat


@dataclass(frozen=True)
class EvaluationOptions:
    split: Literal["train", "val"] = "val"
    batch_size: Positive = 8
    horizons: Positive | None = None
    """How many steps ahead to roll out; null is all that the clip leaves after the context."""
    baseline_clips: Positive = 512
    """Training clips, the first of the plan, that the dataset mean and the ridge are fitted to."""
    ridge_steps: Positive = 3
    """Past steps that the ridge predicts from."""
    own_predictor: bool = True
    """Also score the predictor that the encoder's checkpoint ships, where it ships one (V-JEPA 2)."""
    samples: Annotated[int, Bound("of at least 2", lambda value: value >= 2)] = 8
    """Futures that a generative predictor draws of each context; it is evaluated on the first 512 clips alone."""


@dataclass(frozen=True)
class ProbeOptions:
    epochs: Positive = 20
    """Passes over the training clips."""
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 2e-3
    """The rate at the start; it falls to zero along a cosine."""
    weight_decay: NonNegative = 0.01
