"""A cache at a URL is the cache of a folder: written, read, verified, proven and repaired through the same calls."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import fsspec
import pytest
import xxhash
from forked import run_forked, script
from small_cache import make_cache
from trees import tree

from flcache.cache import LatentCache, LatentLoader, as_webdataset, is_committed, read_spec, summary, verify_cache
from flcache.cache.check.repair import prove, set_aside, shards_aside
from flcache.cache.storage import LocalStore, RemoteStore, Store, open_store
from flcache.errors import CacheError, DamagedError
from flcache.remote import Digest

TAR = "shards/train-000001.tar"


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteStore:
    """An empty store at a URL: one that has folders, and one that is no file system at all."""
    where = f"{tmp_path}/there" if request.param == "file" else f"/{random.randrange(2**60)}"
    found = open_store(f"{request.param}://{where}", local_dir=str(tmp_path / "local"))
    assert isinstance(found, RemoteStore)
    return found


def content(store: Store) -> dict[str, bytes]:
    """All files as they lie there."""
    files, root = fsspec.core.url_to_fs(str(store))
    return {name: files.cat_file(f"{root}/{name}") for name in store.names()}


def spoil(store: Store, name: str) -> None:
    files, root = fsspec.core.url_to_fs(str(store))
    files.pipe_file(f"{root}/{name}", content(store)[name][:-1] + b"x")


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_it_is_the_same_cache(store: RemoteStore, tmp_path: Path, codec: str) -> None:
    folder = make_cache(tmp_path / "cache", codec=codec)
    make_cache(store, codec=codec)
    assert content(store) == tree(folder)
    assert verify_cache(str(store)) == verify_cache(folder)
    assert summary(store) == summary(folder) | {"path": str(store)}
    for ours, theirs in zip(LatentCache(store), LatentCache(folder), strict=True):
        assert ours.clip_id == theirs.clip_id and ours.latents.tobytes() == theirs.latents.tobytes()
    options = {"batch_size": 3, "context_steps": 1, "shuffle_block": 8, "copy": True}
    loaders = [LatentLoader(LatentCache(place, "train"), **options) for place in (store, folder)]
    for ours, theirs in zip(*loaders, strict=True):
        assert ours.ids == theirs.ids and ours.latents.equal(theirs.latents)


def test_it_is_proven_and_repaired(store: RemoteStore) -> None:
    make_cache(store)
    whole = content(store)
    assert len(LatentCache(store)[0].latents) and verify_cache(store).ok
    spoil(store, TAR)
    assert [damage.file for damage in verify_cache(store).damaged] == [TAR]
    set_aside(store, "train", 1)
    assert not is_committed(store, "train", 1) and shards_aside(store) == [("train", 1)]
    make_cache(store)
    assert prove(store, "train", 1) and content(store) == whole
    assert read_spec(store).channels is not None


def test_damage_is_one_line_that_says_what_to_do(store: RemoteStore) -> None:
    make_cache(store)
    spoil(store, TAR)
    cache = LatentCache(store, "train")
    shard = next(number for number, commit in enumerate(cache.commits) if commit.files.tar == TAR)
    index = sum(commit.clips for commit in cache.commits[:shard])
    with pytest.raises(DamagedError, match=rf'{TAR}: arrives as other bytes .*; "flcache verify {store}" says'):
        cache[index]
    store.remove(TAR)
    with pytest.raises(DamagedError, match=rf"{TAR}: is not there; "):
        LatentCache(store, "train")[index]


def test_files_one_by_one(store: RemoteStore) -> None:
    store.write("a/file", b"old")
    store.write("a/file", b"new")
    assert not store.write_new("a/file", b"other") and store.write_new("b", b"12345")
    assert store.read("a/file", 3) == b"new" and store.size("b") == 5 and store.exists("b")
    assert store.read_all(["a/file", "b"], 9) == [b"new", b"12345"] and store.read_part("b", 1, 3) == b"234"
    assert sorted(store.names()) == ["a/file", "b"] and list(store.names("a")) == ["a/file"]
    assert store.move("b", "c/d") and not store.move("b", "c/d") and not store.exists("b")
    assert pickle.loads(pickle.dumps(store)).read("c/d", 9) == b"12345"
    store.remove("c/d")
    store.remove("c/d")
    assert store.size("c/d") is None and list(store.names("c")) == []
    with pytest.raises(DamagedError, match="more than 2 bytes"):
        store.read("a/file", 2)
    for read in (store.read, store.direct().read):
        with pytest.raises(CacheError, match=r"nothing: no such file"):
            read("nothing", 9)
    for name in ("", "../x", "a//b", "/etc/passwd"):
        with pytest.raises(CacheError, match="is not the name of a file"):
            store.write(name, b"")


def test_a_stream_is_sent_whole_or_not_at_all(store: RemoteStore, tmp_path: Path) -> None:
    dropped, kept = store.create("x/dropped"), store.create("x/kept")
    for file in (dropped, kept):
        file.write(b"content")
    assert len(list(store.unpublished())) == 2 and list(store.names()) == []
    dropped.discard()
    kept.publish()
    kept.discard()
    assert content(store) == {"x/kept": b"content"} and list(store.unpublished()) == []
    with store.lock("x") as mine, store.lock("x", wait=False) as other:
        assert mine and not other
    file, buffer = store.direct().open("x/kept"), bytearray(9)
    assert file.read_into(2, memoryview(buffer)) == 5 and buffer[:5] == b"ntent"


def test_what_is_kept_by_its_digest_needs_nothing_of_the_store(store: RemoteStore) -> None:
    store.write("file", b"content")
    digest = Digest(7, xxhash.xxh3_64_hexdigest(b"content"))
    assert store.read("file", 9, digest=digest) == b"content"
    store.remove("file")
    assert store.read("file", 9, digest=digest) == b"content"
    store.write("file", b"another")
    with pytest.raises(DamagedError, match="arrives as other bytes"):
        store.read("file", 9, digest=Digest(7, "0" * 16))


def test_a_disk_cache_below_one_shard_says_what_would_do(store: RemoteStore, tmp_path: Path) -> None:
    make_cache(store)
    small = open_store(str(store), local_dir=str(tmp_path / "small"), local_bytes=9000)
    with pytest.raises(CacheError, match=r"set cache.local_bytes to \d+ or more"):
        LatentCache(small)[0]


def test_webdataset_needs_a_folder(store: RemoteStore) -> None:
    make_cache(store)
    with pytest.raises(CacheError, match="lies at a URL"):
        as_webdataset(store, "train")
    assert isinstance(open_store("/a/b"), LocalStore)


def test_killed_writers_and_readers_lose_nothing(bucket: str, tmp_path: Path) -> None:
    done = run_forked(script, Path(__file__).with_name("kill_bucket.py"), bucket, tmp_path, "0", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed write" in done.stdout and "killed read" in done.stdout
