"""flcache repair DIR --config CONFIG [KEY=VALUE ...]: encode damaged and missing shards anew, and nothing else.

Every repaired shard is compared with what its commit recorded; if it differs, the damaged one is put back. Safe to kill
and to run again.
"""

from __future__ import annotations

from dataclasses import replace

from flcache.cache import finalize_statistics, is_committed
from flcache.cache.check.repair import prove, prove_spec, set_aside, set_spec_aside, shards_aside, spec_waits
from flcache.cache.format.names import PLAN, parse_shard_name, shard_name
from flcache.cache.format.spec import read_spec
from flcache.cache.storage import Location, Store
from flcache.config import Config
from flcache.errors import CacheError

from .setup.cache import cache_store
from .setup.encoder import earlier_forms, load_configured_encoder
from .setup.encoding import encode_missing, open_cache, report_encoding
from .setup.planning import begin_planning
from .setup.progress import verify_with_progress


def run(directory: Location, config: Config) -> None:
    """Repair the cache at `directory`.

    Raises CacheError if what is encoded anew is not what was committed, and while another repair is at work: each would
    set aside what the other has encoded.
    """
    store = cache_store(config, directory)
    if not any(store.names()):
        read_spec(store)  # raises CacheError before a folder is made
    with store.lock("repair", wait=False) as alone:
        if not alone:
            raise CacheError(f"{store}: another repair is at work on this cache; let it finish, then run this again")
        _repair(store, config)


def _repair(store: Store, config: Config) -> None:
    config = replace(config, cache=replace(config.cache, dir=str(store)))
    _repair_spec(store, config)
    found = verify_with_progress(store)
    for damage in found.damaged:
        if damage.shard is None:
            raise CacheError(
                f"{damage.problem}; or move {store}/{PLAN} away and repair again: the same annotation files and "
                "settings give the same plan"
            )
    for name in sorted({damage.shard for damage in found.damaged if damage.shard}):
        shard = parse_shard_name(name)
        if shard is not None:
            set_aside(store, *shard)
    if not found.missing and not shards_aside(store):
        finalize_statistics(store)  # a new spec has none
        print(f"{store}: no shard to repair")
        return
    try:
        _encode(store, config)
    finally:  # also prove what was encoded before an error
        _prove(store)


def _repair_spec(store: Store, config: Config) -> None:
    """Make a damaged spec anew, and prove it equal to the one that the commits are of."""
    if not spec_waits(store):
        try:
            read_spec(store)
            return
        except CacheError:
            set_spec_aside(store)
    planning = begin_planning(store, config)
    model = load_configured_encoder(config, device=config.encode.device)
    spec = open_cache(store, config, model, planning)
    prove_spec(store, [spec, *(replace(spec, hard=hard) for hard in earlier_forms(spec.hard))])
    print(f"{store}: spec.json: made anew, and of the fingerprint that the commits have")


def _encode(store: Store, config: Config) -> None:
    planning = begin_planning(store, config)
    encode_missing(store, config, planning)
    report_encoding(store, config)


def _prove(store: Store) -> None:
    for split, shard in shards_aside(store):
        if is_committed(store, split, shard):
            proven = prove(store, split, shard)
            outcome = "equal to what was committed" if proven else "whole; the damage left no record to compare it with"
            print(f"{store}: {shard_name(split, shard)}: encoded anew, {outcome}")
