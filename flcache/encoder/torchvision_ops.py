"""Make torchvision importable where its compiled operators cannot load: a CUDA torchvision beside a CPU torch.

torchvision's PyPI wheel is a CUDA build; beside a CPU torch its import dies with "operator torchvision::nms does not
exist". The video processors of transformers use none of the compiled operators, only resizing and cropping written in
torch, so declaring the two missing schemas is enough for them. Call this before transformers is imported.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def ensure_torchvision() -> None:
    """Import torchvision, declaring `nms` and `qnms` first only if its own operators cannot load."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", SCHEMA)
        importlib.import_module("torchvision")


def import_transformers() -> Any:
    """transformers, importable beside any torchvision, without progress bars and log lines, which would break ours."""
    ensure_torchvision()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return transformers
