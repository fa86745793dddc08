"""No byte of a cache changes unnoticed, and a repair brings the original bytes back, or the damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_cache import clip_latents, fill_cache, make_cache, plan_cache
from trees import tree

from flcache.cache import LatentCache, LatentLoader, is_committed, read_spec, verify_cache
from flcache.cache.check.repair import prove, set_aside, shards_aside
from flcache.cache.check.verify import ShardVerifier
from flcache.cache.format.commit import repair_hint
from flcache.cache.format.plan_table import PlanTable
from flcache.cache.storage import LocalStore
from flcache.errors import CacheError, DamagedError, FlcacheError

SIZES = {"num_train": 5, "num_val": 2}
TAR, IDX, COMMIT = "shards/train-000000.tar", "shards/train-000000.idx", "commits/train-000000.json"
FAILURES, SPEC = "failures/train-000000.jsonl", "spec.json"
FILES = (TAR, IDX, COMMIT, FAILURES, SPEC)
TAR_FLIPS = 600


@pytest.fixture(scope="module", params=["float16", "int8"])
def cache_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("cache"), codec=request.param, **SIZES)


@contextmanager
def content(path: Path, changed: bytes) -> Iterator[None]:
    """`path` with other content, for as long as the context lasts."""
    whole = path.read_bytes()
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(whole)


def flips(whole: bytes, count: int | None = None) -> Iterator[tuple[int, bytes]]:
    """One byte changed: of every byte, or of `count` bytes spread evenly from the first to the last."""
    positions = np.arange(len(whole)) if count is None else np.linspace(0, len(whole) - 1, count).astype(int)
    for position in positions.tolist():
        bit = 1 << position % 8
        yield position, whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :]


def damage_finder(cache_dir: Path, file: str) -> Callable[[], bool]:
    """Whether `file` is damaged now, as `verify_cache` would say; looks at the one shard it is of."""
    if file == SPEC:
        return lambda: not verify_cache(cache_dir, threads=1).ok
    store = LocalStore(cache_dir)
    verifier = ShardVerifier(store, read_spec(store), PlanTable(store))
    return lambda: bool(verifier.verify("train", 0)[1])


def loader_notices(cache_dir: Path) -> bool:
    try:
        list(LatentLoader(LatentCache(cache_dir, "train"), batch_size=2, context_steps=2, drop_last=False))
    except FlcacheError:
        return True
    return False


def payload_places(cache_dir: Path) -> list[tuple[int, int]]:
    """Where in the tar of the first shard each payload starts and ends."""
    places = LatentCache(cache_dir, "train").reader(0).rows["payloads"].reshape(-1)
    return [(int(place["offset"]), int(place["offset"]) + int(place["bytes"])) for place in places]


def test_whole_cache_is_proven(cache_dir: Path) -> None:
    found = verify_cache(cache_dir)
    assert found.as_json() == {"ok": True, "shards": 2, "clips": 5, "missing": [], "damaged": []}
    assert json.loads(json.dumps(found.as_json())) == found.as_json()


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_byte_is_found(cache_dir: Path, file: str) -> None:
    path, is_damaged = cache_dir / file, damage_finder(cache_dir, file)
    missed = []
    for position, changed in flips(path.read_bytes(), TAR_FLIPS if file == TAR else None):
        with content(path, changed):
            if not is_damaged():
                missed.append(position)
    assert not missed


@pytest.mark.parametrize("file", FILES)
def test_every_truncation_is_found(cache_dir: Path, file: str) -> None:
    path, is_damaged = cache_dir / file, damage_finder(cache_dir, file)
    whole = path.read_bytes()
    for length in range(0, len(whole), 512):
        with content(path, whole[:length]):
            assert is_damaged(), length
            assert file == FAILURES or loader_notices(cache_dir), length
    with content(path, whole + b"\0"):
        assert is_damaged()


@pytest.mark.parametrize("file", (IDX, COMMIT, SPEC))
def test_loader_finds_every_flip_in_the_records_it_reads(cache_dir: Path, file: str) -> None:
    path = cache_dir / file
    for position, changed in flips(path.read_bytes(), 150):
        with content(path, changed):
            assert loader_notices(cache_dir), position


def test_loader_finds_every_flip_in_a_payload(cache_dir: Path) -> None:
    path = cache_dir / TAR
    whole, places = path.read_bytes(), payload_places(cache_dir)
    assert places
    for start, stop in places:
        for position in np.linspace(start, stop - 1, 25).astype(int).tolist():
            with content(path, whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]):
                assert loader_notices(cache_dir), position


def test_damage_names_file_shard_and_clip(cache_dir: Path) -> None:
    cache = LatentCache(cache_dir, "train")
    path, (start, _) = cache_dir / TAR, payload_places(cache_dir)[0]
    whole = path.read_bytes()
    with content(path, whole[:start] + b"\xff\xff" + whole[start + 2 :]):
        (damage,) = verify_cache(cache_dir).damaged
    assert (damage.file, damage.shard, damage.clip) == (TAR, "train-000000", cache.clip_id(0))
    assert damage.problem == "its latents are not what was written"


def test_missing_files_are_found(cache_dir: Path) -> None:
    for file in (TAR, IDX, FAILURES):
        path = cache_dir / file
        whole = path.read_bytes()
        path.unlink()
        assert [damage.file for damage in verify_cache(cache_dir).damaged] == [file]
        path.write_bytes(whole)
    path, whole = cache_dir / COMMIT, (cache_dir / COMMIT).read_bytes()
    path.unlink()
    assert verify_cache(cache_dir).missing == ("train-000000",)
    path.write_bytes(whole)


def test_a_whole_shard_of_another_place_is_found(tmp_path: Path) -> None:
    """Every digest fits, but the clips are not those that the plan has there."""
    cache_dir = make_cache(tmp_path / "one", num_train=15, num_val=2)
    plan = (make_cache(tmp_path / "two", num_train=16, num_val=2) / "plan.parquet").read_bytes()
    with content(cache_dir / "plan.parquet", plan):
        found = verify_cache(cache_dir)
    assert any("planned" in damage.problem for damage in found.damaged)


def repair(cache_dir: Path) -> list[bool]:
    """As `flcache repair`: set aside, encode what is not committed, prove."""
    for name in {damage.shard for damage in verify_cache(cache_dir).damaged}:
        assert name
        set_aside(LocalStore(cache_dir), *name.rsplit("-", 1)[:1], int(name.rsplit("-", 1)[1]))
    fill_cache(cache_dir, read_spec(cache_dir))
    return [prove(LocalStore(cache_dir), *shard) for shard in shards_aside(LocalStore(cache_dir))]


@pytest.mark.parametrize("file", (TAR, IDX, COMMIT, FAILURES))
def test_repair_brings_the_bytes_back(tmp_path: Path, file: str) -> None:
    cache_dir = make_cache(tmp_path, **SIZES)
    whole = tree(cache_dir)
    for _, changed in flips((cache_dir / file).read_bytes(), 4):
        (cache_dir / file).write_bytes(changed)
        assert repair(cache_dir) == [True]
        assert tree(cache_dir) == whole
    (cache_dir / file).write_bytes(b"")
    assert repair(cache_dir) == [True] and tree(cache_dir) == whole


def test_repair_taken_up_again(tmp_path: Path) -> None:
    """Killed after setting aside, and again after encoding a shard that is damaged in its turn."""
    cache_dir = make_cache(tmp_path, **SIZES)
    whole = tree(cache_dir)
    (cache_dir / TAR).write_bytes(b"")
    set_aside(LocalStore(cache_dir), "train", 0)
    assert not is_committed(cache_dir, "train", 0) and len(LatentCache(cache_dir, "train")) == 0
    fill_cache(cache_dir, read_spec(cache_dir))
    (cache_dir / IDX).write_bytes(b"")
    assert repair(cache_dir) == [True] and tree(cache_dir) == whole


def test_other_bytes_than_committed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_dir = make_cache(tmp_path, **SIZES)
    (cache_dir / IDX).write_bytes(b"damaged")
    damaged = tree(cache_dir)
    set_aside(LocalStore(cache_dir), "train", 0)
    monkeypatch.setattr("small_cache.clip_latents", lambda clip_id, shape: 1.01 * clip_latents(clip_id, shape))
    fill_cache(cache_dir, read_spec(cache_dir))
    with pytest.raises(CacheError, match=r"tar_xxh3_64.* differ from what was committed"):
        prove(LocalStore(cache_dir), "train", 0)
    assert tree(cache_dir) == damaged


def test_without_a_record_there_is_no_proof(tmp_path: Path) -> None:
    cache_dir = make_cache(tmp_path, **SIZES)
    whole = tree(cache_dir)
    for file in (TAR, COMMIT):
        (cache_dir / file).write_bytes(b"")
    assert repair(cache_dir) == [False] and tree(cache_dir) == whole


def test_half_done_cache_is_whole_as_far_as_it_is(tmp_path: Path) -> None:
    plan_cache(tmp_path, **SIZES)
    found = verify_cache(tmp_path)
    assert found.ok and found.missing == ("train-000000", "val-000000") and not found.shards
    with pytest.raises(CacheError, match="no cache here"):
        verify_cache(tmp_path / "nothing")


def test_hint_is_a_command(tmp_path: Path) -> None:
    assert f'"flcache repair {tmp_path} --config C"' in repair_hint(tmp_path)
    assert issubclass(DamagedError, CacheError)
