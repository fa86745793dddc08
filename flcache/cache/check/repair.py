"""Setting damaged shards aside, and proving that the shards encoded in their place equal what had been committed.

Until that proof, the files of a damaged shard keep their bytes under names that end in `.damaged`. The commit moves
first and comes back last: a kill at any moment leaves a shard without a commit, never a commit without its shard. The
next repair goes on with the proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress

import xxhash

from flcache.cache.format.commit import Commit, committed_shards, read_commit
from flcache.cache.format.names import COMMITS, SPEC, shard_files, shard_of
from flcache.cache.format.spec import CacheSpec, read_spec, write_spec
from flcache.cache.storage import Store
from flcache.errors import CacheError, DamagedError

SUFFIX = ".damaged"
_CHUNK_BYTES = 2**22


def set_aside(store: Store, split: str, shard: int) -> None:
    """Rename the files of a shard. If an earlier repair set the shard aside, those files stay and today's are deleted:
    the earlier commit is the one to prove against."""
    with store.lock(shard_files(split, shard).tar):
        recorded = store.exists(_aside(shard_files(split, shard).commit))
        for file in _files(split, shard):
            if recorded:
                store.remove(file)
            else:
                store.move(file, _aside(file))


def shards_aside(store: Store) -> list[tuple[str, int]]:
    """The shards set aside and not yet proven, by this repair or by one that was killed."""
    return sorted(filter(None, (shard_of(file, f".json{SUFFIX}") for file in store.names(COMMITS))))


def prove(store: Store, split: str, shard: int) -> bool:
    """Compare the shard that was encoded anew with the commit of the damaged one, and delete the damaged files.

    True if they are equal; False if the damage has left nothing to compare with. Raises CacheError, with the damaged
    shard back in its place, if they differ.
    """
    fresh = read_commit(store, split, shard)
    recorded = _recorded_commit(store, split, shard)
    different = [] if recorded is None else _differences(recorded, fresh)
    if different:
        put_back(store, split, shard)
        raise CacheError(
            f"{store}: {fresh.name}: encoded anew, {', '.join(different)} differ from what was committed, so the "
            "damaged shard is back in its place; repair with the videos, the machine and the package versions that "
            f'"{store}/{SPEC}" names'
        )
    proven = recorded is not None or _same_files(store, split, shard)
    for file in _files(split, shard):
        store.remove(_aside(file))
    return proven


def put_back(store: Store, split: str, shard: int) -> None:
    """Undo `set_aside`, replacing whatever is there now."""
    files = _files(split, shard)
    with store.lock(shard_files(split, shard).tar):
        store.remove(files[0])
        for file in reversed(files):
            store.move(_aside(file), file)


def spec_waits(store: Store) -> bool:
    """Whether a repair was killed after it had set a damaged spec aside."""
    return store.exists(_aside(SPEC))


def set_spec_aside(store: Store) -> None:
    """Make room for a new `spec.json`. Raises CacheError if there is none."""
    if not store.move(SPEC, _aside(SPEC)):
        read_spec(store)  # says so


def prove_spec(store: Store, forms: Sequence[CacheSpec]) -> None:
    """Write the one of `forms` whose fingerprint the commits have, and delete the damaged spec.

    Raises CacheError, with the damaged spec back in its place, where none of them has it.
    """
    recorded = set()
    for split, shard in committed_shards(store):
        with suppress(DamagedError):
            recorded.add(read_commit(store, split, shard).fingerprint)
    proven = [spec for spec in forms if recorded <= {spec.fingerprint}]
    if not proven:
        store.move(_aside(SPEC), SPEC)
        raise CacheError(
            f"{store}/{SPEC}: damaged, and this configuration has another spec than the cache was made with; "
            "repair with the configuration, the weights and the versions that it was made with"
        )
    write_spec(store, proven[0])
    store.remove(_aside(SPEC))


def _recorded_commit(store: Store, split: str, shard: int) -> Commit | None:
    """The commit that was set aside; None if it is lost or damaged."""
    file = _aside(shard_files(split, shard).commit)
    with suppress(DamagedError):
        return read_commit(store, split, shard, file=file) if store.exists(file) else None
    return None


def _differences(recorded: Commit, fresh: Commit) -> list[str]:
    """Fields that differ. The failures file is not compared: another version may word a failure differently, and the
    idx says which clips failed."""
    fields = [name for name in vars(recorded) if name != "failures_xxh3_64"]
    return [name for name in fields if vars(recorded)[name] != vars(fresh)[name]]


def _same_files(store: Store, split: str, shard: int) -> bool:
    """Whether tar and idx that were set aside are, byte for byte, the new ones."""
    files = shard_files(split, shard)
    pairs = [(file, _aside(file)) for file in (files.tar, files.idx)]
    return all(store.exists(old) and _digest(store, old) == _digest(store, new) for new, old in pairs)


def _digest(store: Store, name: str) -> str:
    digest, buffer, offset = xxhash.xxh3_64(), memoryview(bytearray(_CHUNK_BYTES)), 0
    with closing(store.open(name, sequential=True)) as file:
        while num_read := file.read_into(offset, buffer):
            digest.update(buffer[:num_read])
            offset += num_read
    return digest.hexdigest()


def _files(split: str, shard: int) -> list[str]:
    """The commit first."""
    files = shard_files(split, shard)
    return [files.commit, files.tar, files.idx, files.failures]


def _aside(file: str) -> str:
    return file + SUFFIX
