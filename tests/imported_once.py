"""What processes of `forked.py` have imported when they start: the stages, and the encoder of most tests."""

from __future__ import annotations

from importlib import import_module

from flcache.encoder.torchvision_ops import import_transformers

import_transformers()
for name in (
    *(f"flcache.pipelines.{stage}" for stage in ("encode", "train", "evaluate", "baselines", "inspect_cache")),
    *(f"flcache.{name}" for name in ("cache.read.loader", "encoder.loading", "predictor.causal", "videos.pool")),
    *(f"transformers.models.vjepa2.{name}_vjepa2" for name in ("modeling", "configuration", "video_processing")),
):
    import_module(name)
