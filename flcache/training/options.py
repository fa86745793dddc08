"""Options of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from flcache.bounds import Count, Decay, Device, Fraction, NonNegative, OptionalPath, Positive, PositiveFloat, Share
from flcache.errors import ConfigError

Distance = Literal["l1", "l2", "smooth_l1", "cosine"]
Targets = Literal["raw", "layer_norm"]
Schedule = Literal["cosine", "wsd", "constant"]
AntiCollapse = Literal["sigreg", "vicreg"]


@dataclass(frozen=True)
class Objective:
    """What a predictor learns from. Raises ConfigError for an unknown distance or targets, and for invalid weights."""

    distance: Distance = field(default="l1", metadata={"key": "loss"})
    """`cosine` is the squared error over twice the squared length of the last known token at its place, or of an
    average token if that is longer; where lengths agree, it is 1 - cosine similarity. `flow_matching` takes `l2` alone.
    """
    targets: Targets = "raw"
    """`raw` compares standardised latents; `layer_norm` divides errors by the deviation over channels of the last known
    token at its place, if above 1. V-JEPA 2 divides targets by their own. `cosine` is relative in either case."""
    rollout_steps: Positive | None = None
    """How many steps `causal` is rolled out from a random prefix in every batch; 1 is teacher forcing alone. Null is 1
    where a context may end at any step; else the steps from the middle boundary to the end of the clip, since teacher
    forcing would train only the steps that follow a boundary, one step ahead."""
    horizon_weights: tuple[NonNegative, ...] = (1.0,)
    """Weights of the loss 1, 2, ... steps ahead; the last one is used for all further steps."""

    def __post_init__(self) -> None:
        for name, value, known in (("loss", self.distance, Distance), ("targets", self.targets, Targets)):
            if value not in get_args(known):
                raise ConfigError(f'training.{name}: unknown "{value}"; choose from {", ".join(get_args(known))}')
        if not self.horizon_weights or min(self.horizon_weights) < 0 or sum(self.horizon_weights) == 0:
            raise ConfigError(
                f"training.horizon_weights: {list(self.horizon_weights)} must hold weights of at least 0, not all 0"
            )

    def steps_rolled_out(self, boundaries: Sequence[int], num_steps: int) -> int:
        """`rollout_steps`, or its default for clips of `num_steps` whose contexts may end at `boundaries`."""
        if self.rollout_steps is not None:
            return self.rollout_steps
        if len(boundaries) == num_steps - 1:
            return 1
        return num_steps - min(boundaries, key=lambda boundary: abs(boundary - num_steps // 2))


@dataclass(frozen=True)
class EncoderTargets:
    """Where the targets of an encoder that trains come from, and what keeps it from collapsing."""

    encoder: Literal["ema", "online"] = field(default="ema", metadata={"key": "target_encoder"})
    """`ema` is the encoder's moving average, without gradient. `online` is the encoder itself, with gradient through
    predictions and targets, as LeJEPA trains: it wants an `anti_collapse`."""
    anti_collapse: Literal["none", AntiCollapse] = "none"
    """A term of the loss that keeps latents spread out: `sigreg` (LeJEPA, arXiv 2511.08544) or `vicreg` (arXiv
    2105.04906). It sees them in the units that they had when the run began."""
    weight: PositiveFloat = field(default=1.0, metadata={"key": "anti_collapse_weight"})
    """Of that term, beside 1 for the prediction."""

    def __bool__(self) -> bool:
        return self.encoder != "ema" or self.anti_collapse != "none"


@dataclass(frozen=True)
class Augmentation:
    """Random changes of live clips in training, the same for all frames of a clip."""

    crop: Share = 1.0
    """Least part of a frame's area that is kept; 1 keeps all of it. The place and the part are drawn for each clip."""
    flip: bool = False
    """Mirror every second clip, drawn at random."""

    def __bool__(self) -> bool:
        return self.crop != 1 or self.flip


@dataclass(frozen=True)
class TrainingOptions:
    dir: OptionalPath = None
    """Folder of checkpoints, metrics and evaluation."""
    source: Literal["cache", "videos"] = "cache"
    """`cache` reads latents; `videos` decodes and encodes on the fly, end to end if the encoder trains."""
    augment: Augmentation = field(default_factory=Augmentation)
    steps: Positive = 10_000
    """Optimiser steps."""
    batch_size: Positive = 8
    """Clips per process and forward pass."""
    shuffle_block: Positive | None = None
    """A cache larger than memory, or than `cache.local_bytes`: shuffle the clips within blocks of this many neighbours,
    and the blocks, instead of all clips."""
    accumulate: Positive = 1
    """Batches per optimiser step."""
    context_steps: Positive | None = None
    """Steps the evaluation's predictor sees; null is half of the clip, or the nearest boundary that does not leak."""
    objective: Objective = field(default_factory=Objective, metadata={"inline": True})
    learning_rate: PositiveFloat = 5e-4
    """The rate after the warm-up."""
    encoder_learning_rate: PositiveFloat | None = None
    """The same for an encoder that trains; null is `learning_rate`. Warm-up and schedule are the same."""
    layer_decay: Share = 1.0
    """An encoder that trains: the rate of each layer relative to the layer above it."""
    schedule: Schedule = "cosine"
    """After the warm-up: `cosine` falls along one to the last step, `wsd` is stable and falls linearly at the end,
    `constant` stays."""
    decay_fraction: Fraction = 0.2
    """The part of all steps, at the end, over which `wsd` falls."""
    min_learning_rate_fraction: Fraction = 0.01
    """The part of `learning_rate` at which `cosine` and `wsd` end."""
    warmup_steps: Count = 200
    """Steps of rising learning rate."""
    weight_decay: NonNegative = 0.04
    """AdamW's, for matrices."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's."""
    clip_norm: PositiveFloat = 1.0
    """Maximum gradient norm."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Accelerate's mixed precision; `auto` is `bf16` on CUDA devices that have bfloat16, `no` elsewhere."""
    checkpoint_every: Positive = 1_000
    """Steps from one checkpoint to the next."""
    keep_checkpoints: Positive = 2
    """How many of the newest are kept; older ones are removed."""
    log_every: Positive = 20
    """Steps from one line of metrics to the next."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """What gets the metrics beside `metrics.jsonl`: trackers that Accelerate knows, such as `wandb`, or none."""
    validate_every: Positive | None = None
    """Steps from one validation to the next, also after the last step; null is none."""
    validate_clips: Positive = 64
    """Clips of the val split, the first of the plan, that every validation uses."""
    ema: Decay | None = None
    """Decay of a moving average of the predictor's weights, such as 0.999: it is what is validated and evaluated. Null
    is none. In the first steps the decay is (1 + step) / (10 + step), so that the untrained weights are soon forgotten.
    """
    encoder_targets: EncoderTargets = field(default_factory=EncoderTargets, metadata={"inline": True})
    ema_decay: Fraction = 0.998
    """Decay of the moving average of a trainable encoder that the targets come from."""
    ema_decay_end: Fraction | None = None
    """What `ema_decay` rises or falls to, linearly to the last step, such as V-JEPA's 1.0; null leaves it as it is."""
    device: Device = "auto"

    def ema_decay_at(self, step: int) -> float:
        """The decay of the encoder's average after `step` of `steps` steps."""
        if self.ema_decay_end is None:
            return self.ema_decay
        return self.ema_decay + (self.ema_decay_end - self.ema_decay) * min(1.0, step / self.steps)

    def validates_at(self, step: int) -> bool:
        return self.validate_every is not None and (step % self.validate_every == 0 or step == self.steps)

    def logs_at(self, step: int) -> bool:
        return step % self.log_every == 0 or step in (1, self.steps) or self.validates_at(step)
