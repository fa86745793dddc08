"""The README of what is pushed: what it is, how to read it, what is missing from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from flcache.cache import Failure, failure_groups
from flcache.predictor import load_predictor

_CACHE = """---
license: {licence}
tags: [video, latents, webdataset, flcache]
---
# Latents of videos, by {encoder}

{shape} (steps, rows, columns, channels) a clip, stored as {codec}, {clip_bytes} a clip. Context mode `{mode}`: steps
have seen those up to {seen_until}.

| split | clips | failed | planned | shards | bytes |
|---|---|---|---|---|---|
{splits}

Fingerprint `{fingerprint}`. The encoder, as `spec.json` has it:

```json
{encoder_fields}
```

## Read it
With webdataset alone; every `.npy` is plain numpy{as_stored}:

```python
import webdataset
from webdataset.autodecode import npy_loads

samples = webdataset.WebDataset("shards/train-000000.tar", shardshuffle=False)
for sample in samples.decode(webdataset.handle_extension("npy", npy_loads)):
    print(sample["__key__"], sample["latents.npy"].shape)
```

With flcache, checked and standardised: `flcache pull URL DIR`, then `flcache.LatentCache(DIR, "train")`.

## Clips that failed
{failures}
"""

_MODEL = """---
license: {licence}
tags: [video, world-model, flcache]
---
# A predictor of future latents

`{kind}`, from clips of {shape} (steps, rows, columns, channels), a context of {context} steps, step {step} of its
training. It fits latents of the fingerprint `{fingerprint}`.

## Use it
`flcache pull URL DIR`, then in Python:

```python
from flcache import load_predictor

predictor = load_predictor("DIR/{folder}")
future = predictor(context)  # raw latents (B, Tc, H, W, D) to raw latents (B, Tt, H, W, D)
```

or `flcache predict VIDEO --model DIR` where the encoder is beside it.
"""


def cache_card(found: Mapping[str, Any], encoder_name: str | None, licence: str) -> str:
    """Of a cache, from its `summary` and the name of its encoder, if it has one."""
    latents, encoder = found["latents"], found["encoder"]
    rows = [
        f"| {name} | {split['clips']} | {split['failed']} | {split['planned_clips']} | {split['committed_shards']} of "
        f"{split['planned_shards']} | {decimal(split['tar_bytes'])} |"
        for name, split in found["splits"].items()
    ]
    groups = failure_groups(Failure(**failure) for failure in found["failures"])
    return _CACHE.format(
        licence=licence,
        encoder=encoder_name or _architecture(encoder),
        shape=_sizes(latents["shape"]),
        codec=latents["codec"],
        clip_bytes=decimal(latents["clip_bytes"]),
        mode=found["context"]["mode"],
        seen_until=found["context"]["seen_until"],
        splits="\n".join(rows),
        fingerprint=found["fingerprint"],
        encoder_fields=json.dumps(encoder, indent=1, sort_keys=True),
        as_stored="" if latents["codec"].startswith("float") else f", of the codec {latents['codec']}",
        failures="\n".join(f"- {group}" for group in groups) or "None.",
    )


def model_card(directory: Path, predictor: Path, licence: str) -> str:
    """Of an exported model, from the card of its predictor. Raises PredictorError if that does not load."""
    folder = predictor.parent
    card = load_predictor(folder).card
    return _MODEL.format(
        licence=licence,
        kind=card.options.kind,
        shape=_sizes(card.latent_shape),
        context=card.context_steps,
        step=card.step,
        fingerprint=card.fingerprint,
        folder=folder.relative_to(directory).as_posix(),
    )


def _architecture(encoder: Any) -> str:
    """The encoder of a spec in words, where it has no name."""
    match encoder:
        case {"architecture": {"model_type": str(kind)}}:
            return f"a {kind} with random weights"
    return "an encoder of their own"


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
