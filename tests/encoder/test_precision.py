"""`encoder.dtype: auto` and `compile`: what they are taken for, and that the fingerprint knows."""

from __future__ import annotations

import pytest
import torch

from flcache.encoder import EncoderSource, hard_keys, has_bfloat16, load_encoder, loading, pick_dtype

ARCHITECTURE = {"model_type": "vit", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
ARCHITECTURE |= {"intermediate_size": 24, "image_size": 16, "patch_size": 8}


def a_source(dtype: str = "auto") -> EncoderSource:
    return EncoderSource(architecture=ARCHITECTURE, dtype=dtype)  # type: ignore[arg-type]


def test_auto_on_a_cpu_is_float32_to_the_fingerprint() -> None:
    assert not has_bfloat16("cpu") and pick_dtype("auto", "cpu") == "float32"
    assert hard_keys(load_encoder(a_source())) == hard_keys(load_encoder(a_source("float32")))
    assert hard_keys(load_encoder(a_source("bfloat16")))["encoder"]["dtype"] == "bfloat16"


def test_auto_is_bfloat16_where_the_device_has_it_but_for_weights_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "has_bfloat16", lambda device: True)
    assert pick_dtype("auto", "cuda") == "bfloat16" and pick_dtype("float16", "cuda") == "float16"
    frozen, trained = load_encoder(a_source()), load_encoder(a_source(), trainable=["layers.0"])
    assert {weight.dtype for weight in frozen.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}
    assert hard_keys(frozen) == hard_keys(load_encoder(a_source("bfloat16")))


def test_a_compiled_encoder_has_another_fingerprint_and_the_same_weights() -> None:
    plain, compiled = (hard_keys(load_encoder(a_source(), compile=compiled))["encoder"] for compiled in (False, True))
    assert compiled == {**plain, "compiled": True}
