"""verify and repair as commands: real videos, a real encoder, and the original bytes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trees import tree

from flcache.cache.storage import LocalStore
from flcache.config import load_config
from flcache.errors import CacheError, DamagedError
from flcache.pipelines import encode, repair, verify
from flcache.videos import write_dataset


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of the demo: few videos, in shards of two clips."""
    folder = tmp_path_factory.mktemp("videos")
    write_dataset(folder, train_videos=6, val_videos=2)
    dataset = [f"dataset.root={folder}", f"dataset.train={folder}/train.csv", f"dataset.val={folder}/val.csv"]
    return [*dataset, "encode.decode_workers=1", f"cache.shard_bytes={2 * 16 * 4 * 4 * 64 * 2}"]


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the cache, as it was encoded."""
    cache_dir = tmp_path_factory.mktemp("whole")
    encode.run(load_config("demo", [*settings, f"cache.dir={cache_dir}"]))
    return tree(cache_dir)


@pytest.fixture
def cache_dir(whole: dict[str, bytes], tmp_path: Path) -> Path:
    for name, content in whole.items():
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "cache"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_verify_prints_json(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify.run(cache_dir, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found == {"ok": True, "shards": 4, "clips": 8, "missing": [], "damaged": []}
    flip(cache_dir / "shards" / "train-000001.tar")
    with pytest.raises(DamagedError, match=f'run "flcache repair {cache_dir} --config C"'):
        verify.run(cache_dir, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and found["damaged"][0]["shard"] == "train-000001"


def test_repair_encodes_what_is_damaged_and_nothing_else(
    settings: list[str], whole: dict[str, bytes], cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config("demo", settings)
    repair.run(cache_dir, config)
    assert "no shard to repair" in capsys.readouterr().out
    untouched = cache_dir / "shards" / "val-000000.tar"
    before = untouched.stat().st_mtime_ns
    flip(cache_dir / "shards" / "train-000000.tar")
    flip(cache_dir / "commits" / "train-000001.json")
    (cache_dir / "commits" / "train-000002.json").unlink()
    repair.run(cache_dir, config)
    assert "train-000000: encoded anew, equal to what was committed" in capsys.readouterr().out
    assert tree(cache_dir) == whole and untouched.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_repair_makes_a_damaged_spec_anew(
    settings: list[str], whole: dict[str, bytes], cache_dir: Path, content: bytes | None
) -> None:
    if content is None:
        flip(cache_dir / "spec.json")
    else:
        (cache_dir / "spec.json").write_bytes(content)
    repair.run(cache_dir, load_config("demo", settings))
    assert tree(cache_dir) == whole


def test_repair_with_another_encoder_changes_nothing(settings: list[str], cache_dir: Path) -> None:
    other = load_config("demo", [*settings, "encoder.seed=7"])
    flip(cache_dir / "spec.json")
    damaged = tree(cache_dir)
    with pytest.raises(CacheError, match="another spec than the cache was made with"):
        repair.run(cache_dir, other)
    assert tree(cache_dir) == damaged


def test_a_second_repair_at_the_same_time_is_refused(cache_dir: Path, settings: list[str]) -> None:
    flip(cache_dir / "shards" / "train-000001.tar")
    before = tree(cache_dir)
    with LocalStore(cache_dir).lock("repair"), pytest.raises(CacheError, match="another repair is at work"):
        repair.run(cache_dir, load_config("demo", settings))
    assert tree(cache_dir) == before
