"""A cache is data from strangers: mutate spec, plan, idx, commits, npy and tar headers, and read what comes out.

    python tests/cache/fuzz.py --count 20000 [--seed 0] [--codec int8]

Every mutation must be harmless or a FlcacheError: no other exception, no warning, no hang, no crash, no memory beyond
the file's. Half of them are sealed again, digests and all, as a stranger would who means it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from small_cache import make_cache

from flcache.cache import LatentCache, LatentLoader, summary, verify_cache
from flcache.cache.format.record import canonical_json, seal
from flcache.errors import FlcacheError

LIMIT_S = 60
SPARE_BYTES = 2**30
"""Address space that reading a cache of a few hundred kilobytes may take beyond what is mapped at the start."""
SPEC, PLAN, COMMIT = "spec.json", "plan.parquet", "commits/train-000000.json"
TAR, IDX = "shards/train-000000.tar", "shards/train-000000.idx"
NASTY: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, "", "x", "..", "../../etc/passwd", "/", "\0",
    "pipe:true", "a" * 5000, [], [0], [[]], {}, {"a": 1}, [10**9] * 4, [2**40] * 4, [1] * 1000, [-1] * 4, ["1"] * 4,
)  # fmt: skip
Mutation = Callable[[random.Random, dict[str, bytes]], None]


def mangle(chance: random.Random, whole: bytes) -> bytes:
    """Bytes changed, put in, taken out, repeated or cut off."""
    start = chance.randrange(len(whole))
    length = chance.choice((1, 1, 2, 4, 8, 64, 512))
    noise = chance.choice((chance.randbytes(length), b"\0" * length, b"\xff" * length, b"9" * length, b"7" * length))
    kept = whole[start + length :]
    return chance.choice(
        (
            whole[:start] + noise[: len(whole) - start] + kept,
            whole[:start] + noise + whole[start:],
            whole[:start] + kept,
            whole[: start + length] + whole[start : start + length] + kept,
            whole[:start],
        )
    )


def mangle_value(chance: random.Random, value: Any) -> Any:
    """The JSON value with one part of it replaced, dropped or repeated."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        if chance.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        return value | {key: mangle_value(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        part = [] if chance.random() < 0.1 else [mangle_value(chance, value[place])]
        return value[:place] + part + value[place + 1 :]
    if isinstance(value, int) and chance.random() < 0.5:
        return value + chance.choice((-1, 1, value, 2**32, -value * 2))
    return chance.choice(NASTY)


def sealed(content: dict[str, Any]) -> bytes:
    return seal({name: value for name, value in content.items() if name != "xxh3_64"})


def mangle_spec(chance: random.Random, files: dict[str, bytes]) -> None:
    """A spec that is whole, and in all commits too, but says something else."""
    content = mangle_value(chance, json.loads(files[SPEC]))
    if not isinstance(content, dict):
        return
    if chance.random() < 0.9:
        import hashlib

        content["fingerprint"] = hashlib.sha256(canonical_json(content.get("spec")).encode()).hexdigest()
        for file in [file for file in files if file.startswith("commits/")]:
            files[file] = sealed(json.loads(files[file]) | {"fingerprint": content["fingerprint"]})
    files[SPEC] = sealed(content)


def mangle_commit(chance: random.Random, files: dict[str, bytes]) -> None:
    content = mangle_value(chance, json.loads(files[COMMIT]))
    if isinstance(content, dict):
        files[COMMIT] = sealed(content)


def mangle_idx(chance: random.Random, files: dict[str, bytes]) -> None:
    files[IDX] = mangle(chance, files[IDX])
    agree(chance, files, {"idx_xxh3_64": xxhash.xxh3_64_hexdigest(files[IDX])})


def mangle_tar(chance: random.Random, files: dict[str, bytes]) -> None:
    """A tar header or an npy header: they end on a boundary of 4096 bytes, at most 1536 bytes before a payload."""
    whole = files[TAR]
    boundaries = [place for place in range(4096, len(whole), 4096) if whole[place - 1 : place] == b"\n"]
    end = chance.choice(boundaries)
    start = chance.choice((max(0, end - 4608), whole.rindex(b"\x93NUMPY", 0, end), 0))
    header = mangle(chance, whole[start:end])
    files[TAR] = whole[:start] + header + whole[end:]
    agree(chance, files, {"tar_xxh3_64": xxhash.xxh3_64_hexdigest(files[TAR]), "tar_bytes": len(files[TAR])})


def agree(chance: random.Random, files: dict[str, bytes], fields: dict[str, Any]) -> None:
    """Mostly, let the commit vouch for it."""
    if chance.random() < 0.7:
        files[COMMIT] = sealed(json.loads(files[COMMIT]) | fields)


def mangle_bytes(chance: random.Random, files: dict[str, bytes]) -> None:
    file = chance.choice((SPEC, PLAN, COMMIT, IDX))
    files[file] = mangle(chance, files[file])


MUTATIONS: tuple[Mutation, ...] = (mangle_spec, mangle_commit, mangle_idx, mangle_tar, mangle_bytes)


def read_all(cache_dir: Path) -> None:
    """Everything that reads a cache, each on its own: the first error must not hide the second."""
    readers: tuple[Callable[[], Any], ...] = (
        lambda: verify_cache(cache_dir, threads=1),
        lambda: summary(cache_dir),
        lambda: list(LatentCache(cache_dir)),
        lambda: LatentCache(cache_dir).ids,
        lambda: read_epoch(cache_dir, verify="first_epoch", standardise=True),
        lambda: read_epoch(cache_dir, verify="off", standardise=False),
        lambda: read_epoch(cache_dir, verify="always", steps=(1, 3)),
    )
    for read in readers:
        with contextlib.suppress(FlcacheError):
            read()


def read_epoch(cache_dir: Path, **options: Any) -> None:
    loader = LatentLoader(LatentCache(cache_dir), batch_size=3, context_steps=1, drop_last=False, threads=1, **options)
    for batch in loader:
        torch.sum(batch.latents)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Little more memory than there is now, and an alarm where something hangs."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + SPARE_BYTES, before[1]))

    def give_up(*_: object) -> None:
        raise TimeoutError(f"not done after {LIMIT_S} s")

    former = signal.signal(signal.SIGALRM, give_up)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(cache_dir: Path, *, count: int, seed: int) -> list[str]:
    """What `count` mutations of the cache at `cache_dir`, which is left as it was, have brought to light."""
    names = [str(path.relative_to(cache_dir)) for path in sorted(cache_dir.rglob("*")) if path.is_file()]
    whole = {name: (cache_dir / name).read_bytes() for name in names}
    read_all(cache_dir)
    findings, kinds = [], Counter[str]()
    with limits():
        for number in range(count):
            chance, files = random.Random(f"{seed}/{number}"), dict(whole)
            mutate = chance.choice(MUTATIONS)
            mutate(chance, files)
            changed = [name for name in names if files[name] != whole[name]]
            for name in changed:
                (cache_dir / name).write_bytes(files[name])
            signal.alarm(LIMIT_S)
            try:
                read_all(cache_dir)
            except Exception:
                findings.append(f"mutation {number} ({mutate.__name__}), seed {seed}:\n{traceback.format_exc()}")
            signal.alarm(0)
            kinds[mutate.__name__] += 1
            for name in changed:
                (cache_dir / name).write_bytes(whole[name])
    print(f"{count} mutations {dict(kinds)}: {len(findings)} findings")
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codec", default="float16")
    options = parser.parse_args()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        cache_dir = make_cache(Path(folder) / "cache", codec=options.codec, num_train=5, num_val=2)
        findings = fuzz(cache_dir, count=options.count, seed=options.seed)
    print("\n".join(findings[:20]))
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
