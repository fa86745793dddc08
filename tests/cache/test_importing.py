"""Files of latents in a manifest become a cache; bad ones are named and left out, and nothing is unpickled."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from trees import tree

from flcache.cache import LatentCache, read_latents, read_manifest
from flcache.errors import CacheError, DataError
from flcache.pipelines.import_latents import ImportOptions, run

SHAPE = T, H, W, D = (3, 2, 2, 4)
CLIPS = 8


def latents(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(2, 3, size=SHAPE).astype(np.float32)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(array), path)
    else:
        save_file({"latents": torch.from_numpy(array)}, path)


def write_manifest(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "manifest.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_files(folder: Path, suffix: str) -> Path:
    """`CLIPS` files and their manifest."""
    rows = []
    for number in range(CLIPS):
        path = f"class {number % 2}/features.{number}{suffix}"
        save(folder / path, latents(number))
        split = "val" if number >= 6 else "train"
        rows.append(
            {"path": path, "id": f"f{number}", "label": f"{number % 2}", "split": split, "camera": f"c{number}"}
        )
    return write_manifest(folder, rows)


@pytest.mark.parametrize("codec", ["float16", "int8"])
@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
def test_files_become_a_cache(tmp_path: Path, suffix: str, codec: str) -> None:
    manifest = make_files(tmp_path, suffix)
    options = ImportOptions(codec=codec, step_s=0.25, context="step")
    run(manifest, tmp_path, tmp_path / "cache", options)
    cache = LatentCache(tmp_path / "cache")
    assert (cache.clips("train"), cache.clips("val"), cache.latent_shape) == (6, 2, SHAPE)
    for clip in cache:
        number = int(clip.clip_id[1:])
        tolerance = {"rtol": 2**-10} if codec == "float16" else {"atol": 0.1}
        np.testing.assert_allclose(clip.latents, latents(number), **tolerance)
        assert (clip.label, clip.video) == (f"{number % 2}", f"class {number % 2}/features.{number}{suffix}")
        assert clip.times.tolist() == [0, 0.25, 0.5] and clip.seen_until == (0, 1, 2)
    before = tree(tmp_path / "cache")
    run(manifest, tmp_path, tmp_path / "cache", options)
    assert tree(tmp_path / "cache") == before


def test_tokens_are_reshaped_and_bfloat16_is_read(tmp_path: Path) -> None:
    tensors = torch.from_numpy(latents(0)).bfloat16()
    torch.save({"tokens": tensors.flatten(0, 2), "other": torch.zeros(1)}, tmp_path / "a.pt")
    save_file({"tokens": tensors.flatten(0, 2), "other": torch.zeros(1)}, tmp_path / "b.safetensors")
    manifest = write_manifest(tmp_path, [{"path": "a.pt"}, {"path": "b.safetensors"}])
    options = ImportOptions(shape=SHAPE, key="tokens", codec="bfloat16", spec=tmp_path / "spec.json")
    (tmp_path / "spec.json").write_text('{"encoder": {"name": "mine"}}')
    run(manifest, tmp_path, tmp_path / "cache", options)
    cache = LatentCache(tmp_path / "cache")
    assert sorted(cache.ids) == ["a", "b"] and cache.spec.hard["encoder"] == {"name": "mine"}
    assert all(np.array_equal(clip.latents, tensors.float().numpy()) for clip in cache)
    with pytest.raises(DataError, match=r"a\.pt: holds other, tokens; say which with --key"):
        read_latents(tmp_path / "a.pt")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


def test_bad_files_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = {
        "missing.npy": None,
        "cut.npy": b"\x93NUMPY\x01\x00v\x00{'descr'",
        "objects.npy": np.array([Evil()], dtype=object),
        "evil.pt": pickle.dumps(Evil()),
        "zip.pt": b"PK\x03\x04",
        "empty.safetensors": b"",
        "small.npy": np.zeros((3, 2, 2, 3), np.float32),
        "nan.npy": np.full(SHAPE, np.nan, np.float32),
        "text.txt": b"hello",
    }
    for name, content in bad.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            np.save(tmp_path / name, content, allow_pickle=True)
    np.save(tmp_path / "good.npy", latents(0))
    manifest = write_manifest(tmp_path, [{"path": name} for name in ["good.npy", *bad]])
    rows = [row.info.clip_id for row in read_manifest(manifest, tmp_path)]
    assert rows == ["good", *(name.split(".")[0] for name in bad)]
    with pytest.raises(DataError, match="9 clips could not be imported"):
        run(manifest, tmp_path, tmp_path / "cache", ImportOptions())
    cache = LatentCache(tmp_path / "cache")
    assert cache.ids == ["good"]
    failures = {failure.clip_id: failure for failure in cache.failures()}
    assert set(failures) == {name.split(".")[0] for name in bad}
    assert all(failure.clip_id in failure.message for failure in failures.values())
    assert failures["nan"].stage == "encode" and failures["small"].stage == "read"
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column named path"),
        (b"id,label\n1,2\n", "no column named path"),
        (b"path\n", "lists no file"),
        (b"path\n../a.npy\n", "leads out of"),
        (b"path\n/etc/passwd\n", "leads out of"),
        (b"path,id\n,7\n", "leads out of"),
        (b"path\n\xff\xfe\n", "not a CSV file in UTF-8"),
    ],
)
def test_bad_manifests_are_clear(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.csv").write_bytes(content)
    (tmp_path / "files").mkdir()
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path / "manifest.csv", tmp_path / "files")
    with pytest.raises(CacheError, match="nothing"):
        read_manifest(tmp_path / "nothing.csv", tmp_path)


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "secret.npy", latents(0))
    (tmp_path / "files" / "link.npy").symlink_to(tmp_path / "secret.npy")
    manifest = write_manifest(tmp_path, [{"path": "link.npy"}])
    with pytest.raises(DataError, match="leads out of"):
        read_manifest(manifest, tmp_path / "files")


def test_shape_is_asked_for_where_files_do_not_tell(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", latents(0).reshape(-1, D))
    manifest = write_manifest(tmp_path, [{"path": "a.npy"}])
    with pytest.raises(DataError, match=r"\(12, 4\) is not \(T, H, W, D\); say what it is with --shape"):
        run(manifest, tmp_path, tmp_path / "cache", ImportOptions())
    run(manifest, tmp_path, tmp_path / "cache", ImportOptions(shape=SHAPE))
    assert np.array_equal(LatentCache(tmp_path / "cache")[0].latents, latents(0).astype(np.float16))
