"""Options of the encoder. Those of its context mode are in `context.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from flcache.bounds import Count

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class EncoderSource:
    """Everything that names an encoder."""

    name: str | None = None
    """Hub name or local folder; null builds `architecture` with random weights from `seed`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """`model_type` and fields of the Hugging Face config; a loaded model must agree with every field stated here."""
    processor: dict[str, Any] = field(default_factory=dict)
    """Fields of the processor to set, such as `crop_size`; for random weights, over the family's defaults."""
    leading_tokens: Count | None = None
    """For an image encoder of a `model_type` that has no entry in `families.py`: how many tokens, class token and
    registers, come before its patches."""
    seed: int = 0
    """Seed of random weights."""
    dtype: Dtype = "auto"
    """`auto` is bfloat16 on CUDA devices that have it, float32 elsewhere and for an encoder that trains."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model of the hub."""
    checkpoint_activations: bool = False
    """While it trains: compute activations again in the backward pass instead of keeping them."""
