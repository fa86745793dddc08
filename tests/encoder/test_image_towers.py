"""Image encoders from elsewhere: towers of models that also read text, those that a user describes, and errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flcache.encoder import (
    EncoderSource,
    Family,
    LatentVideoModel,
    describe_encoder,
    hard_keys,
    load_encoder,
    register_family,
)
from flcache.encoder.families import FAMILIES
from flcache.encoder.torchvision_ops import import_transformers
from flcache.errors import EncoderError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "encoder.md"
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
IMAGE = {**SMALL, "image_size": 16, "patch_size": 8}
TEXT = {**SMALL, "vocab_size": 99}
FRAMES = torch.randint(0, 256, (1, 4, 20, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def families() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


def save_towers(kind: str, folder: Path) -> Any:
    """A checkpoint of two towers and the image processor, as the hub has them; the model is returned."""
    transformers = import_transformers()
    config = transformers.AutoConfig.for_model(kind, text_config=TEXT, vision_config=IMAGE)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    processor = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[kind]
    load_encoder(EncoderSource(architecture=tower_of(kind))).processor.save_pretrained(folder)
    assert processor in (folder / "preprocessor_config.json").read_text(encoding="utf-8")
    return model


def tower_of(kind: str) -> dict[str, Any]:
    return {**IMAGE, "model_type": f"{kind}_vision_model"}


@pytest.mark.parametrize(("kind", "leading"), [("siglip", 0), ("clip", 1)])
def test_of_two_towers_that_of_images_is_loaded(kind: str, leading: int, tmp_path: Path) -> None:
    """SigLIP 2 of fixed size is a `siglip` to transformers."""
    whole = save_towers(kind, tmp_path)
    model = load_encoder(EncoderSource(name=str(tmp_path), architecture=tower_of(kind)))
    assert not [name for name, _ in model.named_parameters() if "text" in name]
    pixels = model.preprocess(FRAMES)
    with torch.no_grad():
        tokens = whole.vision_model(pixels[0]).last_hidden_state[:, leading:]
    assert torch.equal(model.encode(pixels)[0], tokens.unflatten(1, (2, 2)))
    assert describe_encoder(EncoderSource(name=str(tmp_path))).latent_shape(4) == (4, 2, 2, 24)
    alone = tmp_path / "alone"
    model.encoder.save_pretrained(alone)  # type: ignore[operator]
    model.processor.save_pretrained(alone)
    assert hard_keys(load_encoder(EncoderSource(name=str(alone)))) == hard_keys(model)


def an_image_encoder(leading_tokens: int | None, model_type: str = "deit", **fields: Any) -> LatentVideoModel:
    source = EncoderSource(architecture={**IMAGE, "model_type": model_type, **fields}, leading_tokens=leading_tokens)
    return load_encoder(source)


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_leading_tokens_that_leave_no_grid_are_refused(wrong: int) -> None:
    assert an_image_encoder(2)(FRAMES).shape == (1, 4, 2, 2, 24)
    with pytest.raises(EncoderError, match=rf"\(4, 6, 24\) leaves {6 - wrong} patch tokens for a grid of 1 x 2 x 2"):
        an_image_encoder(wrong)(FRAMES)


def test_wrong_descriptions_are_errors() -> None:
    with pytest.raises(EncoderError, match=r'no adapter for model_type "deit".*set "encoder\.leading_tokens"'):
        an_image_encoder(None)
    with pytest.raises(EncoderError, match=r'flcache knows the tokens of model_type "vit"; set it to null'):
        an_image_encoder(1, "vit")
    with pytest.raises(EncoderError, match='"convnext" has no hidden_size'):
        convnext = {"model_type": "convnext", "hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2}
        load_encoder(EncoderSource(architecture=convnext, leading_tokens=0))(FRAMES)


def test_a_family_is_registered_once(families: None) -> None:
    family = Family("DeiTImageProcessor", video=False, class_tokens=2)
    for _ in range(2):
        register_family("deit", family)
    assert an_image_encoder(None)(FRAMES).shape == (1, 4, 2, 2, 24)
    with pytest.raises(EncoderError, match='"deit" has another family already'):
        register_family("deit", Family("DeiTImageProcessor", video=False, class_tokens=1))


def test_the_adapter_of_the_docs_is_an_encoder(families: None) -> None:
    """A patch of pixels that changes moves its own cell most, and every step sees its own frame alone."""
    (code,) = re.findall(r"```python\n(from flcache\.encoder.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(code.splitlines()) < 40
    found: dict[str, Any] = {}
    exec(compile(code, "encoder.md", "exec"), found)
    model: LatentVideoModel = found["model"]
    steps, height, width, _ = model.latent_shape(4)
    edge = 32
    frames = torch.randint(0, 256, (1, 4, edge, edge, 3), dtype=torch.uint8)
    changed = frames.clone()
    changed[:, 2, : edge // height, -edge // width :] = 255 - changed[:, 2, : edge // height, -edge // width :]
    moved = (model(changed) - model(frames))[0].norm(dim=-1)  # (T, H, W)
    assert moved.argmax() == (2 * height + 0) * width + width - 1
    assert torch.equal(moved[[0, 1, 3]], torch.zeros(3, height, width)) and steps == 4
