"""Encoders of the real Hugging Face classes with random weights: shapes, the leak rule, and every trap an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flcache.encoder import ContextRule, EncoderSource, LatentVideoModel, describe_encoder, hard_keys, load_encoder
from flcache.encoder.families import FAMILIES
from flcache.errors import EncoderError

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {**SMALL, "image_size": 32, "patch_size": 8}
VJEPA2 = {
    **SMALL,
    "model_type": "vjepa2",
    "crop_size": 32,
    "patch_size": 8,
    "frames_per_clip": 8,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vjepa2": VJEPA2,
    "videomae": {**IMAGE, "model_type": "videomae", "num_frames": 8},
    "vivit": {**SMALL, "model_type": "vivit", "image_size": 32, "tubelet_size": [2, 8, 8], "num_frames": 8},
    "timesformer": {**IMAGE, "model_type": "timesformer", "num_frames": 8},
    "dinov2": {**IMAGE, "model_type": "dinov2"},
    "dinov2_with_registers": {**IMAGE, "model_type": "dinov2_with_registers", "num_register_tokens": 3},
    "dinov3_vit": {**IMAGE, "model_type": "dinov3_vit", "num_register_tokens": 4},
    "vit": {**IMAGE, "model_type": "vit"},
    "ijepa": {**IMAGE, "model_type": "ijepa"},
    "siglip_vision_model": {**IMAGE, "model_type": "siglip_vision_model"},
    "clip_vision_model": {**IMAGE, "model_type": "clip_vision_model"},
    "beit": {**IMAGE, "model_type": "beit"},
    "deit": {**IMAGE, "model_type": "deit"},
}
LEADING_TOKENS = {"beit": 1, "deit": 2}
"""Of encoders that have no entry in `families.py`."""
UNUSED = {
    "vit": {"pooler"},
    "siglip_vision_model": {"head"},
    "clip_vision_model": {"post_layernorm"},
    "beit": {"pooler"},
    "deit": {"pooler"},
}
"""Modules that no latent depends on."""
ONE_FRAME_A_STEP = set(ARCHITECTURES) - {"vjepa2", "videomae", "vivit"}
FIXED_FRAMES = {"videomae", "vivit", "timesformer"}


def build(architecture: dict[str, Any], **options: Any) -> LatentVideoModel:
    return load_encoder(source(architecture), **options)


def source(architecture: dict[str, Any]) -> EncoderSource:
    return EncoderSource(architecture=architecture, leading_tokens=LEADING_TOKENS.get(architecture["model_type"]))


def random_frames(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def test_every_family_is_built() -> None:
    assert set(ARCHITECTURES) == set(FAMILIES) | set(LEADING_TOKENS)


@pytest.fixture(scope="module")
def vjepa2() -> LatentVideoModel:
    return build(VJEPA2)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_latents_have_the_described_shape(family: str) -> None:
    description = describe_encoder(source(ARCHITECTURES[family]))
    model = build(ARCHITECTURES[family], context=ContextRule("full"))
    latents = model(random_frames(2, 8, 40, 56))
    steps = 8 if family in ONE_FRAME_A_STEP else 4
    assert tuple(latents.shape) == (2, steps, 4, 4, 48) == (2, *description.latent_shape(8))
    assert latents.dtype == torch.float32
    counts = [sum(parameter.numel() for parameter in found.parameters()) for found in (description, model)]
    assert counts[0] == counts[1] > 0 and description.device.type == "meta"


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_patch_of_pixels_lands_in_its_cell_of_the_grid(family: str) -> None:
    """The cell whose pixels change moves most, in space and in time."""
    model = build(ARCHITECTURES[family], context=ContextRule("full"))
    frames = random_frames(1, 8, 32, 32)
    changed = frames.clone()
    changed[:, 6:8, 0:8, 24:32] = 255 - changed[:, 6:8, 0:8, 24:32]
    pixels = torch.stack([video.permute(0, 3, 1, 2).float() / 255 for video in (frames[0], changed[0])])
    before, after = model.encode(pixels)
    moved = (after - before).norm(dim=-1)  # (T, H, W)
    step, row, column = torch.unravel_index(moved.argmax(), moved.shape)
    assert (int(row), int(column)) == (0, 3)
    assert int(step) in ({6, 7} if family in ONE_FRAME_A_STEP else {3})


@pytest.mark.parametrize("family", sorted(set(ARCHITECTURES) - FIXED_FRAMES))
def test_contexts_of_step_ignore_the_future(family: str) -> None:
    model = build(ARCHITECTURES[family], context=ContextRule("step"))
    frames = random_frames(2, 8, 32, 40)
    for boundary in range(model.tubelet_size, 8, model.tubelet_size):
        changed = frames.clone()
        changed[:, boundary:] = random_frames(2, 8 - boundary, 32, 40, seed=boundary)
        step = boundary // model.tubelet_size
        before, after = model(frames), model(changed)
        assert torch.equal(before[:, :step], after[:, :step])
        assert not torch.equal(before[:, step:], after[:, step:])
        assert max(model.seen_until(8)[:step]) < step


def test_full_sees_the_future() -> None:
    model = build(VJEPA2, context=ContextRule("full"))
    frames = random_frames(1, 8, 32, 32)
    changed = frames.clone()
    changed[:, 6:] = 255 - changed[:, 6:]
    assert not torch.equal(model(frames)[:, :3], model(changed)[:, :3])
    assert model.seen_until(8) == [3, 3, 3, 3]


def test_videos_of_several_sizes_encode_as_each_does_alone(vjepa2: LatentVideoModel) -> None:
    wide, tall = random_frames(8, 32, 64), random_frames(8, 70, 34, seed=1)
    both = vjepa2([wide, tall])
    torch.testing.assert_close(both, torch.cat([vjepa2([wide]), vjepa2([tall])]), atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    digests = [
        hard_keys(load_encoder(EncoderSource(architecture=VJEPA2, seed=seed)))["encoder"]["weights"]
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_saved_model_loads_equal(tmp_path: Path, vjepa2: LatentVideoModel) -> None:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(7)
    fields = {key: value for key, value in VJEPA2.items() if key != "model_type"}
    AutoModel.from_config(AutoConfig.for_model("vjepa2", **fields)).save_pretrained(tmp_path)
    vjepa2.processor.save_pretrained(tmp_path)
    loaded = load_encoder(EncoderSource(name=str(tmp_path), architecture=VJEPA2))
    seeded = load_encoder(EncoderSource(architecture=VJEPA2, seed=7))
    assert hard_keys(loaded) == hard_keys(seeded)
    frames = random_frames(1, 8, 32, 32)
    assert torch.equal(loaded(frames), seeded(frames))
    with pytest.raises(EncoderError, match="num_hidden_layers is 2, stated 3"):
        load_encoder(EncoderSource(name=str(tmp_path), architecture={**VJEPA2, "num_hidden_layers": 3}))
    with pytest.raises(EncoderError, match="neither a video processor"):
        next(tmp_path.glob("*processor*.json")).unlink()
        load_encoder(EncoderSource(name=str(tmp_path)))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path, vjepa2: LatentVideoModel) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModel

    fields = {key: value for key, value in VJEPA2.items() if key != "model_type"}
    AutoModel.from_config(AutoConfig.for_model("vjepa2", **fields)).save_pretrained(tmp_path)
    vjepa2.processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.mlp.fc1.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"lacks 1 weights, encoder\.layer\.1\.mlp\.fc1\.weight"):
        load_encoder(EncoderSource(name=str(tmp_path)))


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_what_trains_is_what_gets_a_gradient(family: str) -> None:
    """Parameters without one would stop data parallelism; the others must not be frozen."""
    model = build(ARCHITECTURES[family], context=ContextRule("full"), trainable=True)
    trains = {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}
    model.encoder.requires_grad_(True)
    model(random_frames(1, 8, 32, 32)).square().sum().backward()
    assert trains == {name for name, parameter in model.encoder.named_parameters() if parameter.grad is not None}
    if family in UNUSED:
        assert {name.split(".")[0] for name, _ in model.encoder.named_parameters() if name not in trains} == UNUSED[
            family
        ]


def test_frozen_stays_frozen_under_train(vjepa2: LatentVideoModel) -> None:
    vjepa2.train()
    assert not any(module.training for module in vjepa2.encoder.modules())
    assert not any(parameter.requires_grad for parameter in vjepa2.parameters())
    assert not vjepa2(random_frames(1, 8, 32, 32)).requires_grad


def test_patterns_unfreeze_just_those() -> None:
    model = build(VJEPA2, trainable=["layer.1", "layernorm.*"])
    trainable = {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}
    assert trainable == {
        name for name, _ in model.encoder.named_parameters() if name.startswith(("layer.1.", "layernorm"))
    }
    model(random_frames(1, 8, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.layernorm.parameters())
    assert all(parameter.grad is None for parameter in model.encoder.layer[0].parameters())
    with pytest.raises(EncoderError, match=r'"layer\.7" matches no parameter.*near: layer\.1'):
        build(VJEPA2, trainable=["layer.7"])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (random_frames(1, 7, 32, 32), "7 frames are not a multiple of its step of 2"),
        (random_frames(1, 8, 32, 32).float() / 255, "must be uint8"),
        (random_frames(1, 8, 32, 32).permute(0, 1, 4, 2, 3), r"a clip is \(F, h, w, 3\)"),
    ],
)
def test_wrong_frames_are_errors(vjepa2: LatentVideoModel, frames: torch.Tensor, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        vjepa2(frames)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (EncoderSource(architecture={**VJEPA2, "model_type": "bert"}), 'no adapter for model_type "bert"'),
        (EncoderSource(), "neither .encoder.name. nor"),
        (EncoderSource(architecture=VJEPA2, dtype="int8"), "encoder.dtype"),
        (EncoderSource(architecture=VJEPA2, processor={"size": 64}), "ignores it"),
    ],
)
def test_wrong_sources_are_errors(source: EncoderSource, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder(source)


def test_a_crop_against_the_config_is_an_error() -> None:
    source = EncoderSource(architecture=VJEPA2, processor={"crop_size": 48})
    with pytest.raises(EncoderError, match="48 x 48 against a config of 32 x 32"):
        describe_encoder(source)
    model = load_encoder(source)
    with pytest.raises(EncoderError, match="48 x 48 against a config of 32 x 32"):
        model(random_frames(1, 8, 64, 64))


def test_a_fixed_number_of_frames_refuses_single_steps() -> None:
    with pytest.raises(EncoderError, match="accepts exactly 8 frames, not 2"):
        build(ARCHITECTURES["videomae"])(random_frames(1, 8, 32, 32))
