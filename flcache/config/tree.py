"""The configuration as one tree of frozen dataclasses, composed of the rooms' options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from flcache.bounds import Device, Fraction, Positive, PositiveFloat
from flcache.cache.options import CacheOptions, ReductionOptions
from flcache.encoder.context import ContextRule
from flcache.encoder.options import EncoderSource
from flcache.engines.options import RayOptions
from flcache.errors import ConfigError
from flcache.evaluation.options import EvaluationOptions, ProbeOptions
from flcache.predictor.options import PredictorOptions
from flcache.training.options import TrainingOptions
from flcache.videos.options import ClipRule, DatasetOptions


@dataclass(frozen=True)
class EncodeConfig:
    """How encoding runs. The only section whose keys come from several rooms."""

    context: ContextRule = field(default_factory=ContextRule, metadata={"inline": True})
    keep: ReductionOptions = field(default_factory=ReductionOptions)
    batch_size: Positive | Literal["auto"] = "auto"
    """Clips per forward pass: auto is 8, on CUDA devices as many as have 65,536 patches, at most 64."""
    decode_workers: Positive | Literal["auto"] = "auto"
    """Processes that decode, shared by all encoders of a machine; auto takes one a core, or two beside each encoder on
    a CPU."""
    decode_timeout_s: PositiveFloat = 60.0
    """Seconds after which a clip has failed and its process is killed."""
    max_failed_fraction: Fraction = 0.05
    """Clips that may fail before the stage exits 1."""
    device: Device = "auto"
    devices: Positive | Literal["auto"] = "auto"
    """Encoder processes on this machine: auto takes every CUDA device; a number as many of them, or of processes on the
    CPU."""
    ray: RayOptions = field(default_factory=RayOptions)
    compile: bool = False
    """`torch.compile` for the encoder. Its latents differ in their last bits, so the fingerprint does too."""


@dataclass(frozen=True)
class Config:
    seed: int = 0
    """Seed of the predictor's weights and of the order of the clips."""
    encoder_trainable: bool | tuple[str, ...] = False
    """false, true, or a list of module name patterns such as `layer.23` or `layer.2?.mlp.*`."""
    allow_leak: bool = False
    """Accept contexts that have seen the future; every result says so."""
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    clip: ClipRule = field(default_factory=ClipRule)
    encoder: EncoderSource = field(default_factory=EncoderSource)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    cache: CacheOptions = field(default_factory=CacheOptions)
    predictor: PredictorOptions = field(default_factory=PredictorOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    unset: dict[str, str] = field(default_factory=dict, repr=False, compare=False, metadata={"schema": False})
    """Not a key: why a path that is written in a file is null, such as an environment variable that is not set."""

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
