"""What `flcache export` writes is what was trained: the encoder encodes and the predictor predicts the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from safetensors.torch import load_file
from small_run import flcache
from torch import Tensor
from trees import tree

from flcache.cache import CacheWriter, LatentCache
from flcache.config import Config, load_config
from flcache.encoder import LatentVideoModel, weight_digest
from flcache.errors import ConfigError, SpecMismatch
from flcache.pipelines import encode, export, train
from flcache.pipelines.setup.model import load_trained
from flcache.pipelines.setup.source import Reading, describe_source, open_source
from flcache.predictor import SavedPredictor, load_predictor
from flcache.training import WorldModel, latest_checkpoint

END_TO_END = ["training.source=videos", "encoder_trainable=[layer.1]", "training.ema_decay=0.5"]


def trained_model(config: Config) -> WorldModel:
    """The newest checkpoint, as `flcache evaluate` loads it."""
    newest = latest_checkpoint(Path(str(config.training.dir)) / "checkpoints")
    return load_trained(config, describe_source(config, device="cpu"), newest)


def raw_latents(cache: Path) -> Tensor:
    return torch.stack([torch.from_numpy(clip.latents.copy()) for clip in LatentCache(cache, "val")])


def predict_into(folder: Path, latents: Tensor, out: Path) -> None:
    torch.save(load_predictor(folder)(latents[:, :2]), out)


def assert_predicts_as(model: WorldModel, folder: Path, latents: Tensor, out: Path) -> SavedPredictor:
    """A fresh process with the exported predictor gives the bits of the live model."""
    done = run_forked(predict_into, folder, latents, out)
    assert done.returncode == 0, done.stderr
    predictor = load_predictor(folder)
    times = torch.tensor(predictor.card.times).expand(len(latents), -1)
    with torch.no_grad():
        standardised = model.statistics.standardise(latents[:, :2])
        expected = model.statistics.restore(model.predictor.predict(standardised, times[:, :2], times[:, 2:]))
    assert torch.equal(torch.load(out, weights_only=True), expected)
    return predictor


def shards(cache: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(cache).items() if name.startswith("shards/")}


def test_a_frozen_encoder_and_its_predictor_are_exported(encoded: Path, trained: Path, tmp_path: Path) -> None:
    done = flcache("export", trained, tmp_path / "model", f"cache.dir={encoded.parent / 'cache'}")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in sorted((tmp_path / "model").iterdir())] == ["encoder", "predictor"]
    again = load_config(encoded, [f"encoder.name={tmp_path / 'model' / 'encoder'}", f"cache.dir={tmp_path / 'cache'}"])
    encode.run(again)
    assert shards(tmp_path / "cache") == shards(encoded.parent / "cache")
    config = load_config(encoded, [f"training.dir={trained}"])
    latents = raw_latents(tmp_path / "cache")
    predictor = assert_predicts_as(trained_model(config), tmp_path / "model" / "predictor", latents, tmp_path / "out")
    cache = LatentCache(tmp_path / "cache", "val")
    assert predictor.card.fingerprint == cache.fingerprint and predictor.card.step == 6
    assert predictor.card.times == tuple(cache[0].times.tolist()) and predictor.card.target_weights is None


def test_a_run_from_videos_has_the_same_frozen_encoder(encoded: Path, trained: Path, tmp_path: Path) -> None:
    train.run(load_config(encoded, ["training.source=videos", "training.steps=1", f"training.dir={tmp_path / 'live'}"]))
    export.run(tmp_path / "live", tmp_path / "of_videos")
    export.run(trained, tmp_path / "of_cache", [f"cache.dir={encoded.parent / 'cache'}"])
    assert tree(tmp_path / "of_videos" / "encoder") == tree(tmp_path / "of_cache" / "encoder")
    cards = [load_predictor(tmp_path / name / "predictor").card for name in ("of_videos", "of_cache")]
    assert cards[0].fingerprint == cards[1].fingerprint and cards[0].latents == cards[1].latents


@pytest.fixture(scope="module")
def end_to_end(encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A run that trained one layer of its encoder, and its export."""
    folder = tmp_path_factory.mktemp("end_to_end")
    config = load_config(encoded, [*END_TO_END, f"training.dir={folder / 'training'}", f"cache.dir={folder / 'cache'}"])
    train.run(config)
    export.run(folder / "training", folder / "model")
    return config, folder


def test_the_named_modules_were_trained_and_all_else_kept_its_bits(end_to_end: tuple[Config, Path]) -> None:
    config, folder = end_to_end
    before = describe_source(config, device="cpu").encoder
    assert before is not None
    initial = {f"encoder.{name}": tensor for name, tensor in before.encoder.state_dict().items()}
    for name in ("encoder", "target_encoder"):
        found = load_file(folder / "model" / name / "model.safetensors")
        assert found.keys() == initial.keys()
        changed = {name for name, tensor in found.items() if not torch.equal(tensor, initial[name])}
        assert changed == {name for name in initial if name.startswith("encoder.layer.1.")}


def test_a_trained_encoder_encodes_what_the_live_model_does(end_to_end: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = end_to_end
    model = trained_model(config)
    assert model.encoder is not None and model.target_encoder is not None
    for name, live in (("encoder", model.encoder), ("target_encoder", model.target_encoder)):
        again = ["encode.batch_size=1", f"encoder.name={folder / 'model' / name}", f"cache.dir={tmp_path / name}"]
        encode.run(load_config(config_file(folder), again))
        assert torch.equal(raw_latents(tmp_path / name), live_latents(config, live))
    predictor = load_predictor(folder / "model" / "predictor")
    assert predictor.card.fingerprint == LatentCache(tmp_path / "encoder").fingerprint
    assert predictor.card.target_weights == weight_digest(model.target_encoder.encoder)
    assert_predicts_as(model, folder / "model" / "predictor", raw_latents(tmp_path / "encoder"), tmp_path / "out")


def config_file(folder: Path) -> Path:
    return latest_checkpoint(folder / "training" / "checkpoints") / "config.yaml"


@torch.no_grad()
def live_latents(config: Config, encoder: LatentVideoModel) -> Tensor:
    """Every validation clip in the order of a cache, encoded alone."""
    with open_source(config, Reading("val", 1, shuffle=False), device="cpu") as source:
        return torch.cat([encoder(batch.frames) for batch in source.batches])  # type: ignore[union-attr]


def test_neither_videos_nor_annotations_are_needed(end_to_end: tuple[Config, Path], tmp_path: Path) -> None:
    _, folder = end_to_end
    missing = [f"dataset.{key}=/nowhere" for key in ("root", "train", "val")]
    export.run(latest_checkpoint(folder / "training" / "checkpoints"), tmp_path / "model", missing)
    assert tree(tmp_path / "model") == tree(folder / "model"), "twice gives the same bytes"


def test_an_encoder_that_did_not_make_the_latents_is_refused(encoded: Path, trained: Path, tmp_path: Path) -> None:
    given = [f"cache.dir={encoded.parent / 'cache'}", "encoder.seed=5"]
    with pytest.raises(SpecMismatch, match=r"another encoder than this one: encoder\.weights differ") as refused:
        export.run(trained, tmp_path / "model", given)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_the_best_checkpoint_is_exported_by_its_folder(encoded: Path, tmp_path: Path) -> None:
    settings = [f"training.dir={tmp_path / 'training'}", "training.steps=2", "training.validate_every=1"]
    train.run(load_config(encoded, settings))
    export.run(tmp_path / "training" / "checkpoints" / "best", tmp_path / "model")
    found = load_file(tmp_path / "model" / "predictor" / "predictor.safetensors")
    best = load_file(tmp_path / "training" / "checkpoints" / "best" / "model.safetensors")
    assert found.keys() == best.keys() and all(torch.equal(found[name], best[name]) for name in best)


def test_a_folder_that_exists_is_never_written_to(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        export.run(trained, tmp_path)
    done = flcache("export", tmp_path, tmp_path / "model")
    assert done.returncode == 1 and done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1


def test_a_predictor_of_imported_latents_has_no_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = CacheWriter(tmp_path / "cache", (4, 2, 2, 8), codec="float32", context="step")
    latents = np.random.default_rng(0).standard_normal((8, 4, 2, 2, 8)).astype(np.float32)
    writer.write("train", [f"clip-{number}" for number in range(8)], latents)
    settings = ["predictor.preset=tiny", "predictor.overrides={depth: 1, width: 24, heads: 2, merge: 1}"]
    paths = [f"cache.dir={tmp_path / 'cache'}", f"training.dir={tmp_path / 'training'}"]
    train.run(load_config(None, [*settings, *paths, "training.steps=2", "training.batch_size=4"]))
    export.run(tmp_path / "training", tmp_path / "model")
    assert "there is no encoder to export" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["predictor"]
    predictor = load_predictor(tmp_path / "model" / "predictor")
    assert predictor(torch.from_numpy(latents[:, :3])).shape == (8, 1, 2, 2, 8)
    assert predictor.card.times == (0.0, 1.0, 2.0, 3.0)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}: no checkpoint; name one"):
        export.run(tmp_path, tmp_path / "model")
