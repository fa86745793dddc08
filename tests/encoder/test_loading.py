"""Encoders by name: the revision that was asked for, and code of a model that runs only where it is trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flcache.encoder import EncoderSource, load_encoder
from flcache.errors import EncoderError

ARCHITECTURE = {
    "model_type": "vjepa2",
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "crop_size": 32,
    "patch_size": 8,
    "frames_per_clip": 8,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}


def save(folder: Path, seed: int) -> None:
    """A whole checkpoint, model and processor, with random weights."""
    from transformers import AutoConfig, AutoModel

    processor = load_encoder(EncoderSource(architecture=ARCHITECTURE)).processor
    torch.manual_seed(seed)
    fields = {name: value for name, value in ARCHITECTURE.items() if name != "model_type"}
    AutoModel.from_config(AutoConfig.for_model("vjepa2", **fields)).save_pretrained(folder)
    processor.save_pretrained(folder)


def weight(source: EncoderSource) -> torch.Tensor:
    return next(load_encoder(source).encoder.parameters())


def test_the_revision_that_was_asked_for_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a cache of the hub with two commits, of which `main` is one; there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate({"main": "a" * 40, "other": "b" * 40}.items()):
        save(repository / "snapshots" / commit, seed)
        (repository / "refs" / name).write_text(commit)
    for seed, revision in enumerate([None, "other"]):
        found = weight(EncoderSource(name="someone/tiny", revision=revision))
        assert torch.equal(found, weight(EncoderSource(architecture=ARCHITECTURE, seed=seed)))
    with pytest.raises(EncoderError, match=r"someone/tiny.*encoder\.revision"):
        load_encoder(EncoderSource(name="someone/tiny", revision="gone"))


def test_code_of_a_model_runs_only_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "model", tmp_path / "ran"
    save(folder, 0)
    code = f"open({str(ran)!r}, 'w').close()\nfrom transformers import VJEPA2Model\nclass Theirs(VJEPA2Model): pass\n"
    (folder / "theirs.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "theirs.Theirs"}}))
    untrusted = weight(EncoderSource(name=str(folder)))
    assert not ran.exists()
    assert torch.equal(weight(EncoderSource(name=str(folder), trust_remote_code=True)), untrusted)
    assert ran.exists()
