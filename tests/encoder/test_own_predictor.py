"""V-JEPA 2's own predictor as a baseline: of the real class, saved, loaded, and equal to what transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_model import ARCHITECTURES, VJEPA2, build

from flcache.batch import ChannelStatistics
from flcache.encoder import (
    ContextRule,
    EncoderSource,
    LatentVideoModel,
    hard_keys,
    load_encoder,
    load_own_predictor,
)
from flcache.encoder.own_predictor import OwnPredictor
from flcache.errors import EncoderError

BOUNDARY, T, H, W, D = 3, 4, 4, 4, 48
STATISTICS = ChannelStatistics(mean=torch.linspace(-1, 1, D), std=torch.linspace(0.5, 2, D))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V-JEPA 2 saved to disk, with weights large enough that its predictions differ."""
    from transformers import AutoConfig, AutoModel

    folder = tmp_path_factory.mktemp("vjepa2")
    build(VJEPA2).processor.save_pretrained(folder)
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**VJEPA2, initializer_range=0.2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> LatentVideoModel:
    return load_encoder(EncoderSource(name=str(checkpoint)), context=ContextRule("full"))


def load(checkpoint: Path, encoder: LatentVideoModel) -> OwnPredictor | None:
    return load_own_predictor(EncoderSource(name=str(checkpoint)), hard_keys(encoder), STATISTICS, "cpu")


@torch.no_grad()
def test_it_is_the_prediction_of_transformers_with_the_scale_of_the_last_step(
    checkpoint: Path, encoder: LatentVideoModel
) -> None:
    from transformers import AutoModel

    whole = AutoModel.from_pretrained(checkpoint).eval()
    pixels = torch.rand(2, 8, 3, 32, 32)
    places = torch.arange(T * H * W).expand(2, -1)
    seen, masked = places[:, : BOUNDARY * H * W], places[:, BOUNDARY * H * W :]
    output = whole(pixels, context_mask=[seen], target_mask=[masked])
    latents = output.last_hidden_state.view(2, T, H, W, D)
    context = STATISTICS.standardise(latents[:, :BOUNDARY])
    own = load(checkpoint, encoder)
    assert own is not None
    predicted = own(context, torch.zeros(2, BOUNDARY), torch.zeros(2, T - BOUNDARY))
    predicted = predicted * STATISTICS.std + STATISTICS.mean
    last = latents[:, BOUNDARY - 1 : BOUNDARY]
    normed = output.predictor_output.last_hidden_state.view(2, T - BOUNDARY, H, W, D)
    torch.testing.assert_close(predicted, normed * scale(last) + level(last), atol=1e-4, rtol=1e-4)
    assert predicted.std() > 0.05  # of something


def level(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.mean(-1, keepdim=True)


def scale(tokens: torch.Tensor) -> torch.Tensor:
    return (tokens.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


def test_horizons_may_go_beyond_the_clips_of_its_training(checkpoint: Path, encoder: LatentVideoModel) -> None:
    own = load(checkpoint, encoder)
    assert own is not None
    context = torch.randn(1, 5, H, W, D)
    further = own(context, torch.zeros(1, 5), torch.zeros(1, 9))
    assert further.shape == (1, 9, H, W, D) and torch.isfinite(further).all()


def test_another_checkpoint_is_refused_and_one_without_a_predictor_has_none(
    checkpoint: Path, encoder: LatentVideoModel, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match="other weights"):
        load_own_predictor(
            EncoderSource(name=str(checkpoint)),
            hard_keys(load_encoder(EncoderSource(architecture=VJEPA2, seed=1))),
            STATISTICS,
            "cpu",
        )
    without_predictor(checkpoint, tmp_path)
    assert load(tmp_path, encoder) is None


def test_the_digest_is_taken_in_the_type_that_the_encoder_ran_in(checkpoint: Path, encoder: LatentVideoModel) -> None:
    half = load_encoder(EncoderSource(name=str(checkpoint), dtype="bfloat16"))
    assert hard_keys(half)["encoder"]["dtype"] == "bfloat16"
    own, whole = load(checkpoint, half), load(checkpoint, encoder)
    assert own is not None and whole is not None
    given = torch.randn(1, 2, H, W, D), torch.zeros(1, 2), torch.zeros(1, 2)
    assert torch.equal(own(*given), whole(*given)), "the predictor's own weights are not rounded"


def without_predictor(checkpoint: Path, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("predictor.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "video_preprocessor_config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())


@pytest.mark.parametrize(
    "hard",
    [
        {},
        {"encoder": "noise"},
        {"encoder": {"architecture": "vjepa2", "weights": "a", "dtype": "float32"}},
        {
            "encoder": {"architecture": {"model_type": "vjepa2"}, "weights": "a", "dtype": "float32"},
            "keep": {"pool": 2},
        },
        *(
            {"encoder": {"architecture": fields, "weights": "a", "dtype": "float32"}}
            for fields in ARCHITECTURES.values()
        ),
    ],
)
def test_only_whole_latents_of_vjepa2_have_one(hard: dict[str, Any]) -> None:
    fits = hard.get("encoder") == {"architecture": VJEPA2, "weights": "a", "dtype": "float32"}
    nowhere = EncoderSource(name="nowhere")
    if not fits:
        assert load_own_predictor(nowhere, hard, STATISTICS, "cpu") is None, "it loads nothing"
        return
    with pytest.raises(EncoderError, match='"nowhere" cannot be loaded'):
        load_own_predictor(nowhere, hard, STATISTICS, "cpu")
