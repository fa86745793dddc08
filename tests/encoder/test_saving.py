"""A saved encoder is the encoder: a Hugging Face folder that loads to the same bits, for every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_identity import load

from flcache.encoder import ContextRule, EncoderSource, LatentVideoModel, hard_keys, load_encoder, save_encoder
from flcache.encoder.families import FAMILIES
from flcache.errors import EncoderError


def frames() -> torch.Tensor:
    return torch.randint(0, 256, (2, 4, 20, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_encoder_gives_the_same_bits(family: str, tmp_path: Path) -> None:
    model = load(family)
    save_encoder(model, tmp_path)
    again = load_encoder(EncoderSource(name=str(tmp_path)), context=model.context)
    assert hard_keys(again) == hard_keys(model)
    assert torch.equal(again(frames()), model(frames()))
    assert (tmp_path / "config.json").exists() and len(list(tmp_path.glob("*processor_config.json"))) == 1


def test_one_that_is_described_by_its_leading_tokens_comes_back_by_them(tmp_path: Path) -> None:
    architecture = {"model_type": "deit", "image_size": 16, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 1}
    model = load_encoder(EncoderSource(architecture={**architecture, "num_attention_heads": 3}, leading_tokens=2))
    save_encoder(model, tmp_path)
    again = load_encoder(EncoderSource(name=str(tmp_path), leading_tokens=2))
    assert hard_keys(again) == hard_keys(model)
    assert torch.equal(again(frames()), model(frames()))


def test_its_precision_and_the_fields_of_its_processor_are_saved(tmp_path: Path) -> None:
    architecture = load("vit").config.to_dict()
    stated = {name: architecture[name] for name in ("model_type", "hidden_size", "image_size", "patch_size")}
    stated |= {"num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 32}
    processor = {"image_mean": [0.1, 0.2, 0.3], "resample": 0}
    model = load_encoder(EncoderSource(architecture=stated, processor=processor, dtype="bfloat16"))
    save_encoder(model, tmp_path)
    again = load_encoder(EncoderSource(name=str(tmp_path), dtype="bfloat16"))
    assert hard_keys(again) == hard_keys(model)
    assert torch.equal(again(frames()), model(frames()))


def test_an_encoder_that_does_not_come_back_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("vit")

    def altered(source: EncoderSource, context: ContextRule) -> LatentVideoModel:
        found = load_encoder(source, context=context)
        next(found.encoder.parameters()).data.add_(1)
        return found

    monkeypatch.setattr("flcache.encoder.saving.load_encoder", altered)
    with pytest.raises(EncoderError, match="does not load what it has saved"):
        save_encoder(model, tmp_path)
