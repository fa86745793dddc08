"""A cache is read bit by bit by others: tar and numpy, webdataset, Hugging Face datasets, and from its description."""

from __future__ import annotations

import ast
import base64
import gc
import hashlib
import json
import re
import shutil
import struct
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
import xxhash

from flcache.cache import CODECS, CacheWriter, ClipInfo, LatentCache, as_webdataset
from flcache.errors import CacheError, DamagedError

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPE = T, H, W, D = (4, 2, 3, 16)
CLIPS = 9
IDS = [f"clip-{number}" for number in range(CLIPS)]
BLOCK = re.compile(r"^```python (\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = dict(BLOCK.findall((REPOSITORY / "docs" / "interop.md").read_text()))


def original(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(2, 3, size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module", params=sorted(CODECS))
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LatentCache:
    path = tmp_path_factory.mktemp(request.param)
    writer = CacheWriter(path, SHAPE, codec=request.param, context="step", shard_bytes=4 * T * H * W * D * 2)
    writer.write(
        "train",
        [ClipInfo(name, label="run", times=[0.5 * t for t in range(T)], valid_steps=3) for name in IDS],
        [original(number) for number in range(CLIPS)],
    )
    return LatentCache(path)


def expected(cache: LatentCache, clip_id: str) -> list[np.ndarray]:
    """The payloads as they were given to the shard."""
    return cache.spec.codec.encode(original(IDS.index(clip_id)))


def run_block(name: str, **names: Any) -> dict[str, Any]:
    """What the block of the page, run with `names`, leaves behind."""
    names = {"np": np} | names
    exec(compile(BLOCKS[name], "docs/interop.md", "exec"), names)
    return names


def check(cache: LatentCache, clips: dict[str, np.ndarray], ids: list[str]) -> None:
    assert sorted(clips) == sorted(ids)
    for clip_id, found in clips.items():
        stored = expected(cache, clip_id)[0]
        assert (found.dtype, found.shape) == (stored.dtype, stored.shape)
        assert found.tobytes() == stored.tobytes()


def test_page_shows_each_in_five_lines() -> None:
    assert set(BLOCKS) == {"tar", "webdataset", "as_webdataset", "datasets", "bfloat16", "int8"}
    for block in BLOCKS.values():
        assert len(ast.parse(block).body) <= 5


def test_tar_and_numpy(cache: LatentCache, tmp_path: Path) -> None:
    for tar in sorted(cache.path.glob("shards/*.tar")):
        names = run_block("tar", shards=link(tar, tmp_path / tar.stem), folder=tmp_path)
    check(cache, names["clips"], IDS)
    for clip_id in IDS if cache.spec.codec.name == "int8" else ():
        assert np.load(tmp_path / f"{clip_id}.scale.npy").tobytes() == expected(cache, clip_id)[1].tobytes()
    for clip_id in IDS:
        assert json.loads((tmp_path / f"{clip_id}.json").read_text())["dtype"] == cache.spec.codec.name


def link(tar: Path, folder: Path) -> Path:
    """`tar` as the first shard of a folder."""
    folder.mkdir()
    (folder / "train-000000.tar").symlink_to(tar)
    return folder


def test_webdataset(cache: LatentCache) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its last file to the collector
        names = run_block("webdataset", shards=cache.path / "shards")
        check(cache, names["clips"], IDS)
        for sample in names["samples"] if cache.spec.codec.name == "int8" else ():
            assert sample["scale.npy"].tobytes() == expected(cache, sample["__key__"])[1].tobytes()
        del names
        gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_as_webdataset_gives_what_the_cache_does(cache: LatentCache) -> None:
    clips = run_block("as_webdataset", shards=cache.path / "shards")["clips"]
    assert sorted(clips) == sorted(IDS)
    samples = list(as_webdataset(cache.path, "train"))
    assert isinstance(as_webdataset(cache.path, "train"), webdataset.WebDataset)
    for sample, clip in zip(samples, cache, strict=True):
        assert sample["__key__"] == clip.clip_id and (sample["label"], sample["video"]) == (clip.label, clip.video)
        assert sample["latents"].dtype == clip.latents.dtype and sample["latents"].flags.writeable
        for name in ("latents", "times", "valid"):
            np.testing.assert_array_equal(sample[name], getattr(clip, name))
        np.testing.assert_array_equal(clips[clip.clip_id], clip.latents)
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_as_webdataset_in_processes_gives_each_clip_once(cache: LatentCache) -> None:
    loader = webdataset.WebLoader(as_webdataset(cache.path, "train"), batch_size=None, num_workers=2)
    assert sorted(sample["__key__"] for sample in loader) == IDS
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("cache", ["float16", "int8"], indirect=True)
def test_as_webdataset_says_what_webdataset_does_not_see(cache: LatentCache, tmp_path: Path) -> None:
    shutil.copytree(cache.path, tmp_path / "copy")
    tar = tmp_path / "copy" / cache.commits[1].files.tar
    whole, reader = tar.read_bytes(), cache.reader(1)
    changed = bytearray(whole)
    changed[int(reader.rows["payloads"]["offset"][1, -1]) + 3] ^= 1
    with tarfile.open(tar) as archive:
        second = [member.offset for member in archive if member.name.endswith(".json")][1]
    emptied = whole[:second].ljust(len(whole), b"\0")  # zero blocks end a tar
    for content, words in ((changed, "are not what was written"), (emptied, r"ends after 1 clips, \d were written")):
        tar.write_bytes(content)
        samples = iter(as_webdataset(tmp_path / "copy", "train"))
        with pytest.raises(DamagedError, match=rf"{tar.name}: .*({words})"):
            list(samples)
    tar.write_bytes(whole)
    assert len(list(as_webdataset(tmp_path / "copy", "train"))) == len(IDS)
    with pytest.raises(CacheError, match="no split 'test'"):
        as_webdataset(tmp_path / "copy", "test")
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_hugging_face_datasets(cache: LatentCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    names = run_block("datasets", shards=cache.path / "shards")
    check(cache, names["clips"], IDS)
    copied = datasets.load_dataset("webdataset", data_files=names["files"], split="train", cache_dir=str(tmp_path))
    dtypes = {layout.name: layout.dtype for layout in cache.spec.codec.payloads(SHAPE)}
    for sample in copied:
        for name, payload in zip(dtypes, expected(cache, sample["__key__"]), strict=True):
            assert np.asarray(sample[f"{name}.npy"], dtypes[name]).tobytes() == payload.tobytes()
    gc.collect()


@pytest.mark.parametrize("cache", ["bfloat16", "int8"], indirect=True)
def test_values_of_bfloat16_and_int8(cache: LatentCache, tmp_path: Path) -> None:
    names = run_block("tar", shards=cache.path / "shards", folder=tmp_path)
    for clip_id in names["clips"]:
        found = run_block(cache.spec.codec.name, **names | {"clip_id": clip_id})["latents"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, cache[IDS.index(clip_id)].latents, rtol=1e-6, atol=1e-6)


# A reader that knows docs/shard-format.md and nothing of flcache.


def read_sealed(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    match = re.fullmatch(rb'(.*),\n  "xxh3_64": "([0-9a-f]{16})"\n\}\n', raw, re.DOTALL)
    assert match and xxhash.xxh3_64_hexdigest(match[1]).encode() == match[2]
    return dict(json.loads(raw))


def read_rows(
    raw: bytes, steps: int, payloads: int
) -> Iterator[tuple[int, int, tuple[float, ...], list[tuple[int, ...]]]]:
    magic, rows, found_steps, found_payloads, zero = struct.unpack_from("<8s4I", raw)
    assert (magic, found_steps, found_payloads, zero) == (b"flc1idx\n", steps, payloads, 0)
    width = 16 + 4 * steps + 24 * payloads
    assert len(raw) == 24 + rows * width
    for start in range(24, len(raw), width):
        slot, flags, valid_steps, zero = struct.unpack_from("<4I", raw, start)
        assert zero == 0 and (flags == 1) == (valid_steps < steps)
        times = struct.unpack_from(f"<{steps}f", raw, start + 16)
        places = [struct.unpack_from("<3Q", raw, start + 16 + 4 * steps + 24 * number) for number in range(payloads)]
        yield slot, valid_steps, times, places


def decode(codec: str, payloads: list[bytes], constants: dict[str, list[float]], num_values: int) -> list[float]:
    if codec == "float32":
        return list(struct.unpack(f"<{num_values}f", payloads[0]))
    if codec == "float16":
        return list(struct.unpack(f"<{num_values}e", payloads[0]))
    if codec == "bfloat16":
        bits = struct.unpack(f"<{num_values}H", payloads[0])
        return [struct.unpack("<f", struct.pack("<I", value << 16))[0] for value in bits]
    values = struct.unpack(f"{num_values}b", payloads[0])
    scales = struct.unpack(f"<{num_values // D}e", payloads[1])
    mean, std = constants["mean"], constants["std"]
    return [mean[n % D] + std[n % D] * scales[n // D] * value for n, value in enumerate(values)]


def read_as_described(path: Path) -> Iterator[tuple[str, int, tuple[float, ...], list[bytes], list[float]]]:
    record = read_sealed(path / "spec.json")
    spec = record["spec"]
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    assert record["format"] == "flc1" and record["fingerprint"] == hashlib.sha256(canonical.encode()).hexdigest()
    steps, rows, columns, channels = spec["layout"]["shape"]
    num_values, payloads = steps * rows * columns * channels, 2 if spec["codec"] == "int8" else 1
    plan = {(row["split"], row["shard"], row["slot"]): row for row in pq.read_table(path / "plan.parquet").to_pylist()}
    for file in sorted((path / "commits").glob("*.json")):
        commit = read_sealed(file)
        tar, idx = ((path / "shards" / f"{file.stem}.{kind}").read_bytes() for kind in ("tar", "idx"))
        assert commit["fingerprint"] == record["fingerprint"] and len(tar) == commit["tar_bytes"]
        assert xxhash.xxh3_64_hexdigest(tar) == commit["tar_xxh3_64"]
        assert xxhash.xxh3_64_hexdigest(idx) == commit["idx_xxh3_64"]
        for slot, valid_steps, times, places in read_rows(idx, steps, payloads):
            found = [tar[offset : offset + num_bytes] for offset, num_bytes, _ in places]
            assert [xxhash.xxh3_64_intdigest(payload) for payload in found] == [digest for *_, digest in places]
            assert all(offset % 4096 == 0 for offset, *_ in places)
            clip = plan[commit["split"], commit["shard"], slot]
            values = decode(spec["codec"], found, spec.get("calibration", {}), num_values)
            yield clip["clip_id"], valid_steps, times, found, values


def test_format_is_as_described(cache: LatentCache) -> None:
    found = list(read_as_described(cache.path))
    assert [clip_id for clip_id, *_ in found] == IDS
    for number, (clip_id, valid_steps, times, payloads, values) in enumerate(found):
        assert payloads == [payload.tobytes() for payload in expected(cache, clip_id)]
        assert (valid_steps, times) == (3, (0, 0.5, 1, 1.5))
        np.testing.assert_allclose(np.reshape(values, SHAPE), cache[number].latents, rtol=1e-5, atol=1e-5)


def test_members_are_as_described(cache: LatentCache) -> None:
    """Header by header, as a reader without an idx has to."""
    raw = (cache.path / "shards" / "train-000000.tar").read_bytes()
    members: dict[str, tuple[int, bytes]] = {}
    start = 0
    while raw[start : start + 512] != bytes(512):
        name, size, kind = (
            raw[start : start + 100].rstrip(b"\0"),
            int(raw[start + 124 : start + 135], 8),
            raw[start + 156],
        )
        assert raw[start + 257 : start + 265] == b"ustar\x0000" and kind == ord("0")
        members[name.decode()] = (start + 512, raw[start + 512 : start + 512 + size])
        start += 512 + -(-size // 512) * 512
    assert raw[start:] == bytes(1024)
    kinds = ["json", "latents.npy"] + ["scale.npy"] * (cache.spec.codec.name == "int8")
    ids = [clip.clip_id for number, clip in enumerate(cache) if number < cache.commits[0].clips]
    clips = [f"{clip_id}.{kind}" for clip_id in ids for kind in kinds]
    assert list(members) == ["__flc__/fingerprint", *clips, "__flc__/channels"]
    assert members["__flc__/fingerprint"][1].decode() == cache.fingerprint
    sums = np.frombuffer(members["__flc__/channels"][1], "<f8").reshape(2, D)
    latents = np.concatenate([cache[n].latents[:3].reshape(-1, D).astype(np.float64) for n in range(len(ids))])
    np.testing.assert_allclose(sums, [latents.sum(0), (latents**2).sum(0)], rtol=1e-6)
    for name, (offset, content) in members.items():
        if name.endswith(".npy"):
            magic, length = struct.unpack_from("<8sH", content)
            fields = ast.literal_eval(content[10 : 10 + length].decode())
            assert magic == b"\x93NUMPY\x01\x00" and (offset + 10 + length) % 4096 == 0
            assert fields["fortran_order"] is False and fields["shape"] == SHAPE[: len(fields["shape"])]


def test_components_are_as_described(tmp_path: Path) -> None:
    from test_reduction import make_cache, smooth_latents

    cache = make_cache(tmp_path, "float32", 2, 5)
    spec = read_sealed(tmp_path / "spec.json")["spec"]
    fields, (steps, rows, columns, channels) = spec["calibration"]["pca"], spec["keep"]["shape"]
    basis = np.frombuffer(base64.b64decode(fields["basis"]), "<f4").reshape(channels, spec["keep"]["pca"])
    for number in range(len(cache)):
        latents = smooth_latents(number).reshape(steps, rows // 2, 2, columns // 2, 2, channels).mean((2, 4))
        projected = ((latents - np.array(fields["mean"])) / np.array(fields["std"])) @ basis
        np.testing.assert_allclose(cache[number].latents, projected, rtol=1e-3, atol=1e-4)
