"""The configuration: one tree of frozen dataclasses, which is the schema and the only home of defaults.

`load_config` reads a YAML file with its `inherits`, applies `KEY=VALUE` overrides and returns a `Config`;
`print_config` prints it. YAML files only override; an unknown key is an error that suggests the near one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DatasetConfig:
    root: str | None = None
    """Folder that the annotated paths are relative to."""
    train: str | None = None
    """Annotation file of the training split: Kinetics CSV, or headerless `path index` lines."""
    val: str | None = None
    labels: str | None = None
    """`index label` lines; needed only by headerless annotation files."""
    max_missing_fraction: float = 0.1
    """Videos of a split that may be absent from `root` before encoding refuses to start."""


@dataclass(frozen=True)
class ClipConfig:
    frames: int = 16
    fps: float | None = 4.0
    """Frames per second to sample at; null to use `stride`."""
    stride: int | None = None
    """Every how many-th frame of the video to take; null to use `fps`."""
    clips_per_video: int | None = 1
    """Evenly spread over the video, each in the middle of its share; null for the whole video, clip after clip."""
    short: str = "pad"
    """Videos shorter than a clip: `pad` repeats the last frame under a mask, `drop` leaves them out."""


@dataclass(frozen=True)
class EncoderConfig:
    name: str | None = None
    """Hub name or local folder; null builds `architecture` with random weights from `seed`."""
    revision: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    """`model_type` and fields of the Hugging Face config; a loaded model must agree with every field stated here."""
    processor: dict[str, Any] = field(default_factory=dict)
    """Fields of the processor to set, such as `crop_size`; for random weights, over the family's defaults."""
    seed: int = 0
    dtype: str = "float32"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class EncodeConfig:
    context: str = "step"
    """`step` encodes every step alone, `full` the whole clip jointly; see docs on the leak rule."""
    batch_size: int = 8
    """Clips per forward pass."""
    decode_workers: int = 2
    decode_timeout_s: float = 60.0
    max_failed_fraction: float = 0.1
    """Clips that may fail before the stage exits 1."""
    device: str = "auto"


@dataclass(frozen=True)
class CacheConfig:
    dir: str | None = None
    codec: str = "float16"
    shard_bytes: int = 256 * 2**20
    seed: int = 0
    """Shuffles the clips over the shards, once, at planning."""


@dataclass(frozen=True)
class PredictorConfig:
    preset: str = "small"
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the preset to replace: `depth`, `width`, `heads`."""


@dataclass(frozen=True)
class TrainingConfig:
    dir: str | None = None
    source: str = "cache"
    """`cache` reads latents; `videos` decodes and encodes on the fly, end to end if the encoder trains."""
    steps: int = 10_000
    batch_size: int = 8
    """Clips per process and optimiser step, before accumulation."""
    accumulate: int = 1
    context_steps: int | None = None
    """Steps the evaluation's predictor sees; null is half of the clip."""
    loss: str = "l1"
    learning_rate: float = 5e-4
    min_learning_rate_fraction: float = 0.01
    warmup_steps: int = 200
    weight_decay: float = 0.04
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    precision: str = "no"
    """Accelerate's mixed precision: `no`, `bf16`, `fp16`."""
    checkpoint_every: int = 1_000
    log_every: int = 20
    ema_decay: float = 0.998
    """Of the copy of a trainable encoder that the targets come from."""
    device: str = "auto"


@dataclass(frozen=True)
class EvaluationConfig:
    split: str = "val"
    batch_size: int = 8
    horizons: int | None = None
    """How many steps ahead to roll out; null is all that the clip leaves after the context."""


@dataclass(frozen=True)
class Config:
    seed: int = 0
    encoder_trainable: Any = False
    """false, true, or a list of module name patterns such as `encoder.layer.11.*`."""
    allow_leak: bool = False
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
