"""The configuration: one tree of frozen dataclasses, which is the schema and the only home of defaults.

`load_config` reads a YAML file with its `inherits`, applies `KEY=VALUE` overrides and returns a `Config`;
`print_config` prints it. YAML files only override; an unknown key is an error that suggests the near one.
Paths are relative to the current folder, whichever file names them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import yaml

from flcache.errors import ConfigError
from flcache.inherit import Conflict, find_config, merge, read_config, read_overrides, resolve
from flcache.schema import Bound, as_tree, build, check_keys, convert, schema_keys
from flcache.yaml_lines import Entry, Key, Origin, dotted, read_yaml

Positive = Annotated[int, Bound("of at least 1", lambda value: value >= 1)]
Count = Annotated[int, Bound("of at least 0", lambda value: value >= 0)]
NonNegative = Annotated[float, Bound("of at least 0", lambda value: 0 <= value < float("inf"))]
PositiveFloat = Annotated[float, Bound("above 0", lambda value: 0 < value < float("inf"))]
Fraction = Annotated[float, Bound("from 0 to 1", lambda value: 0 <= value <= 1)]
Decay = Annotated[float, Bound("of at least 0 and below 1", lambda value: 0 <= value < 1)]
_DEVICES = ("auto", "cpu", "mps", "cuda")
OptionalPath = Annotated[str, Bound("(a path)", lambda path: path != "")] | None
"""May name an environment variable that does not exist: the path is null then, and `Config.require` says why."""
Device = Annotated[str, Bound("such as auto, cpu, mps, cuda or cuda:1", lambda name: name.split(":")[0] in _DEVICES)]


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
    pool: Annotated[int, Bound("of 2", lambda value: value == 2)] | None = None
    """2 stores the mean of every 2 x 2 patches; null stores every patch."""
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
    codec: Literal["float32", "float16", "bfloat16", "int8"] = "float16"
    """How latents are stored; `int8` takes half the bytes of `float16`, calibrated on training clips beforehand."""
    min_cosine: Fraction | None = None
    """How close every stored latent vector must be to the encoder's; encoding stops at one that is not."""
    shard_bytes: Positive = 256 * 2**20
    """About how large a shard gets."""
    seed: int = 0
    """Shuffles the clips over the shards, once, at planning."""


@dataclass(frozen=True)
class FlowConfig:
    sampler: Literal["euler", "heun"] = "heun"
    """Heun takes two evaluations of the network a step, Euler one."""
    sampler_steps: Positive = 8
    guidance: PositiveFloat = 1.0
    """Of sampling: 1 is the learned distribution, above 1 exaggerates what the past adds to the last step."""
    context_dropout: Fraction = 0.1
    """Training clips that are shown the last step of their context alone; guidance leads away from those."""


@dataclass(frozen=True)
class PredictorConfig:
    kind: Literal["causal", "parallel", "cross_attention", "flow_matching"] = "causal"
    """`causal` predicts step by step, the others all target steps at once: `parallel` from mask tokens among the
    context's, `cross_attention` from queries of the context, `flow_matching` as samples of a conditional flow."""
    preset: str = "small"
    """`tiny`, `small`, `base` or `large`."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the preset to replace: `depth`, `width`, `heads`, `mlp_width`, `merge`."""
    attention: Literal["joint", "factorised"] = "joint"
    """`factorised` alternates between the steps of one place and the places of one step: cheaper for long clips."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more work."""
    compile: bool = False
    """Run blocks through `torch.compile`."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """Of `flow_matching` only."""


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
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
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


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration with its history."""

    config: Config
    origins: dict[str, Origin]
    """Where the value of a dotted key was written; a key that is missing here has its default."""
    conflicts: tuple[Conflict, ...]
    """Keys to which files gave different values."""


_KEYS = schema_keys(Config)
_MAY_BE_UNSET = {key for key, hint in _KEYS.items() if hint == OptionalPath}


def load_config(path_or_name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The configuration at a path, or the shipped one of that name, under `KEY=VALUE` overrides.

    Raises ConfigError with one line for every key or value that is wrong, naming file and line.
    """
    return load_resolved(path_or_name, overrides).config


def load_resolved(path_or_name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> ResolvedConfig:
    """As `load_config`, with where each value came from and which files disagreed."""
    layers = merge(read_config(find_config(path_or_name)), read_overrides(overrides), silently=True)
    entries = layers.entries
    _refuse(check_keys(entries, _KEYS))
    resolved, unresolved = resolve(entries, as_dict(Config()))
    unset = {key: f"{reason} ({entries[key].origin})" for key, reason in unresolved.items() if key in _MAY_BE_UNSET}
    problems = [f"{entries[key].origin}: {dotted(key)}: {unresolved[key]}" for key in unresolved if key not in unset]
    config = _from_entries(resolved, problems, {dotted(key): reason for key, reason in unset.items()})
    return ResolvedConfig(config, {dotted(key): entry.origin for key, entry in entries.items()}, layers.conflicts)


def config_from_yaml(text: str, name: str = "configuration") -> Config:
    """The configuration that `to_yaml` wrote; `name` stands for the text in errors. Nothing in it is resolved."""
    entries = read_yaml(text, name)
    _refuse(check_keys(entries, _KEYS))
    return _from_entries(entries, [], {})


def as_dict(config: Config) -> dict[str, Any]:
    """Every section, key and value."""
    tree = asdict(config)
    del tree["unset"]
    return tree


def to_yaml(config: Config) -> str:
    """Every key and its value; `config_from_yaml` reads it back."""
    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def print_config(config: Config) -> None:
    """Print every key and its value, as YAML."""
    print(to_yaml(config), end="")


def _from_entries(entries: Mapping[Key, Entry], problems: list[str], unset: dict[str, str]) -> Config:
    """The config, unless there are `problems` already or a value is wrong; then all of them in one ConfigError."""
    values, wrong = convert(entries, _KEYS)
    _refuse([*problems, *wrong])
    return replace(build(Config, as_tree(values)), unset=unset)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))
