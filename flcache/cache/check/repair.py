"""Setting damaged shards aside, and proving that what was encoded in their place is what had been committed.

The files of a damaged shard keep their bytes under names that end in `.damaged` until that proof. The commit goes first
and comes back last, so that a kill at any moment leaves a shard that is not committed, never one that is and should not
be; the next repair takes up the proof where it was left.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import xxhash

from flcache.cache.format.commit import Commit, committed_shards, read_commit
from flcache.cache.format.spec import CacheSpec, spec_path, write_spec
from flcache.cache.storage.local import is_file, parse_shard_name, shard_paths, storage_errors, sync_folder
from flcache.errors import CacheError, DamagedError

SUFFIX = ".damaged"
_CHUNK_BYTES = 2**22


def set_aside(cache_dir: Path, split: str, shard: int) -> None:
    """Take a shard out of the cache without losing a byte. What an earlier repair has set aside stays the record."""
    recorded = is_file(_aside(shard_paths(cache_dir, split, shard).commit))
    for path in _files(cache_dir, split, shard):
        with storage_errors(path):
            if recorded:
                path.unlink(missing_ok=True)
            elif path.exists():
                path.replace(_aside(path))
            if path.parent.is_dir():
                sync_folder(path.parent)


def shards_aside(cache_dir: Path) -> list[tuple[str, int]]:
    """The shards whose damaged files wait for the proof, of this repair or of one that was killed."""
    files = sorted((cache_dir / "commits").glob(f"*.json{SUFFIX}"))
    shards = [parse_shard_name(path.name.removesuffix(f".json{SUFFIX}")) for path in files]
    return [shard for shard in shards if shard is not None]


def prove(cache_dir: Path, split: str, shard: int) -> bool:
    """Compare the shard that was encoded anew with the record of the damaged one, and drop the damaged files.

    True if they are equal; False if the damage has left nothing to compare with. Raises CacheError, with the damaged
    shard back in its place, if the new one differs from the record.
    """
    fresh = read_commit(cache_dir, split, shard)
    recorded = _recorded_commit(cache_dir, split, shard)
    different = [] if recorded is None else _differences(recorded, fresh)
    if different:
        put_back(cache_dir, split, shard)
        raise CacheError(
            f"{cache_dir}: {fresh.name}: encoded anew, {', '.join(different)} differ from what was committed, so the "
            "damaged shard is back in its place; repair with the videos, the machine and the package versions that "
            f'"{spec_path(cache_dir)}" names'
        )
    proven = recorded is not None or _same_files(cache_dir, split, shard)
    for path in _files(cache_dir, split, shard):
        with storage_errors(path):
            _aside(path).unlink(missing_ok=True)
    return proven


def put_back(cache_dir: Path, split: str, shard: int) -> None:
    """Undo `set_aside`, over whatever is there now; the commit leaves first and comes back last."""
    files = _files(cache_dir, split, shard)
    with storage_errors(files[0]):
        files[0].unlink(missing_ok=True)
        for path in reversed(files):
            if _aside(path).exists():
                _aside(path).replace(path)
                sync_folder(path.parent)


def spec_waits(cache_dir: Path) -> bool:
    """Whether a damaged spec was set aside and no new one proven: a repair was killed."""
    return is_file(_aside(spec_path(cache_dir)))


def set_spec_aside(cache_dir: Path) -> None:
    """Make room for a new `spec.json`. Raises CacheError if there is none."""
    path = spec_path(cache_dir)
    with storage_errors(path):
        path.replace(_aside(path))


def prove_spec(cache_dir: Path, forms: Sequence[CacheSpec]) -> None:
    """Keep the form of the new spec that the commits are of, and drop the damaged spec.

    Raises CacheError, with the damaged spec back in its place, where they are of none.
    """
    path = spec_path(cache_dir)
    recorded = set()
    for split, shard in committed_shards(cache_dir):
        with suppress(DamagedError):
            recorded.add(read_commit(cache_dir, split, shard).fingerprint)
    proven = [spec for spec in forms if recorded <= {spec.fingerprint}]
    if not proven:
        with storage_errors(path):
            _aside(path).replace(path)
        raise CacheError(
            f"{path}: damaged, and this configuration has another spec than the cache was made with; "
            "repair with the configuration, the weights and the versions that it was made with"
        )
    write_spec(cache_dir, proven[0])
    with storage_errors(path):
        _aside(path).unlink(missing_ok=True)


def _recorded_commit(cache_dir: Path, split: str, shard: int) -> Commit | None:
    """The commit that was set aside, if it is whole."""
    path = _aside(shard_paths(cache_dir, split, shard).commit)
    try:
        return read_commit(cache_dir, split, shard, path=path) if is_file(path) else None
    except DamagedError:
        return None


def _differences(recorded: Commit, fresh: Commit) -> list[str]:
    """The idx says which clips have failed; why may be said in other words than by the version that wrote the cache."""
    words = "failures_xxh3_64"
    return [name for name, value in vars(recorded).items() if name != words and value != vars(fresh)[name]]


def _same_files(cache_dir: Path, split: str, shard: int) -> bool:
    """Whether tar and idx that were set aside are, byte for byte, the new ones."""
    paths = shard_paths(cache_dir, split, shard)
    pairs = [(path, _aside(path)) for path in (paths.tar, paths.idx)]
    return all(is_file(old) and _digest(old) == _digest(new) for new, old in pairs)


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with storage_errors(path), path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _files(cache_dir: Path, split: str, shard: int) -> list[Path]:
    """The commit, and then what it vouches for."""
    paths = shard_paths(cache_dir, split, shard)
    return [paths.commit, paths.tar, paths.idx, paths.failures]


def _aside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)
