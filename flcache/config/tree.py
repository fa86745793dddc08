"""The configuration as one tree of frozen dataclasses: the schema, and the only home of defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from flcache.bounds import (
    Bound,
    Count,
    Decay,
    Device,
    Fraction,
    NonNegative,
    OptionalPath,
    Positive,
    PositiveFloat,
)
from flcache.cache.codecs.registry import CodecName
from flcache.errors import ConfigError
from flcache.predictor.options import PredictorOptions


@dataclass(frozen=True)
class DatasetConfig:
    root: OptionalPath = None
    """Folder that the annotated paths are relative to."""
    train: OptionalPath = None
    """Annotation file of the training split: Kinetics CSV, or headerless `path index` lines."""
    val: OptionalPath = None
    """The same for the validation split."""
    labels: OptionalPath = None
    """`index label` lines; needed only by headerless annotation files."""
    allow_outside: bool = False
    """Accept absolute paths and `..` in annotation files that lead out of `root`."""
    max_missing_fraction: Fraction = 0.25
    """Videos of a split that may be absent from `root` before encoding refuses to start."""


@dataclass(frozen=True)
class ClipConfig:
    frames: Positive = 16
    fps: PositiveFloat | None = 4.0
    """Frames per second to sample at; null to use `stride`."""
    stride: Positive | None = None
    """Every how many-th frame of the video to take; null to use `fps`."""
    clips_per_video: Positive | None = 1
    """Evenly spread over the video, each in the middle of its share; null for the whole video, clip after clip."""
    short: Literal["pad", "drop"] = "pad"
    """Videos shorter than a clip: `pad` repeats the last frame under a mask, `drop` leaves them out."""


@dataclass(frozen=True)
class EncoderConfig:
    name: str | None = None
    """Hub name or local folder; null builds `architecture` with random weights from `seed`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """`model_type` and fields of the Hugging Face config; a loaded model must agree with every field stated here."""
    processor: dict[str, Any] = field(default_factory=dict)
    """Fields of the processor to set, such as `crop_size`; for random weights, over the family's defaults."""
    seed: int = 0
    """Of random weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = False
    """Run Python code that comes with a model of the hub."""


@dataclass(frozen=True)
class KeepConfig:
    pool: bool = False
    """Store the mean of every 2 x 2 patches, instead of every patch."""
    pca: Positive | None = None
    """Principal components to store, fitted once on training clips; null stores every channel."""


@dataclass(frozen=True)
class EncodeConfig:
    context: Literal["step", "window", "prefix", "full"] = "step"
    """Every step alone, windows of steps, a context alone beside targets from the whole clip, or the whole clip
    jointly; see docs/leak-rule.md."""
    window: Positive | None = None
    """Steps encoded jointly by `window`."""
    prefix_steps: Positive | None = None
    """Steps of the context that `prefix` encodes alone; null is half of the clip."""
    repeat_frames: bool = False
    """With `step`: every frame is a step, shown to a video encoder as often as its step is long."""
    keep: KeepConfig = field(default_factory=KeepConfig)
    """What of the latents is stored."""
    batch_size: Positive = 8
    """Clips per forward pass."""
    decode_workers: Positive = 2
    """Processes that decode."""
    decode_timeout_s: PositiveFloat = 60.0
    """Seconds after which a clip has failed and its process is killed."""
    max_failed_fraction: Fraction = 0.05
    """Clips that may fail before the stage exits 1."""
    device: Device = "auto"


@dataclass(frozen=True)
class CacheConfig:
    dir: OptionalPath = None
    """Folder of the cache."""
    codec: CodecName = "float16"
    """How latents are stored; `int8` takes half the bytes of `float16`, calibrated on training clips beforehand."""
    min_cosine: Fraction | None = None
    """How close every stored latent vector must be to the encoder's; encoding stops at one that is not."""
    shard_bytes: Positive = 256 * 2**20
    """About how large a shard gets."""
    seed: int = 0
    """Shuffles the clips over the shards, once, at planning."""


@dataclass(frozen=True)
class TrainingConfig:
    dir: OptionalPath = None
    """Folder of checkpoints, metrics and evaluation."""
    source: Literal["cache", "videos"] = "cache"
    """`cache` reads latents; `videos` decodes and encodes on the fly, end to end if the encoder trains."""
    steps: Positive = 10_000
    batch_size: Positive = 8
    """Clips per process and forward pass."""
    accumulate: Positive = 1
    """Batches per optimiser step."""
    context_steps: Positive | None = None
    """Steps the evaluation's predictor sees; null is half of the clip, or the nearest split that does not leak."""
    loss: Literal["l1", "l2", "smooth_l1", "cosine"] = "l1"
    """`flow_matching` takes `l2` alone."""
    targets: Literal["raw", "layer_norm"] = "raw"
    """`raw` compares standardised latents; `layer_norm` norms every token of prediction and target first."""
    rollout_steps: Positive = 1
    """How far `causal` is rolled out from a random prefix in every batch; 1 is teacher forcing alone."""
    horizon_weights: tuple[NonNegative, ...] = (1.0,)
    """Of the loss 1, 2, ... steps ahead; the last one holds for all further steps."""
    learning_rate: PositiveFloat = 5e-4
    min_learning_rate_fraction: Fraction = 0.01
    """Of `learning_rate`, where the cosine ends."""
    warmup_steps: Count = 200
    weight_decay: NonNegative = 0.04
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    clip_norm: PositiveFloat = 1.0
    """Of the gradient."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Accelerate's mixed precision: `no`, `bf16`, `fp16`."""
    checkpoint_every: Positive = 1_000
    keep_checkpoints: Positive = 2
    """The newest ones; older checkpoints are removed."""
    log_every: Positive = 20
    ema_decay: Fraction = 0.998
    """Of the copy of a trainable encoder that the targets come from."""
    device: Device = "auto"


@dataclass(frozen=True)
class EvaluationConfig:
    split: Literal["train", "val"] = "val"
    batch_size: Positive = 8
    horizons: Positive | None = None
    """How many steps ahead to roll out; null is all that the clip leaves after the context."""
    baseline_clips: Positive = 512
    """Training clips, the first of the plan, that the dataset mean and the ridge are fitted to."""
    ridge_steps: Positive = 3
    """Past steps that the ridge looks at."""
    own_predictor: bool = True
    """Also score the predictor that the encoder's checkpoint ships, where it ships one (V-JEPA 2)."""
    samples: Annotated[int, Bound("of at least 2", lambda value: value >= 2)] = 8
    """Futures drawn of every context from a generative predictor."""


@dataclass(frozen=True)
class ProbeConfig:
    epochs: Positive = 20
    """Passes over the training clips."""
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 2e-3
    """At the start; it falls to zero along a cosine."""
    weight_decay: NonNegative = 0.01


@dataclass(frozen=True)
class Config:
    seed: int = 0
    """Of the predictor's weights and the order of the clips."""
    encoder_trainable: bool | tuple[str, ...] = False
    """false, true, or a list of module name patterns such as `layer.23` or `layer.2?.mlp.*`."""
    allow_leak: bool = False
    """Accept contexts that have seen the future; every result says so."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    predictor: PredictorOptions = field(default_factory=PredictorOptions)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    unset: dict[str, str] = field(default_factory=dict, repr=False, compare=False, metadata={"schema": False})
    """Not a key: why a path that a file does name is null, such as an environment variable that is not set."""

    def require(self, key: str) -> Any:
        """The value at a dotted `key`, such as `dataset.train`. Raises ConfigError if it is null."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        if value is None:
            if key in self.unset:
                raise ConfigError(f"{key}: {self.unset[key]}; set it, or give {key}=PATH")
            raise ConfigError(f"{key} is not set; give {key}=PATH, or write it in the configuration file")
        return value
