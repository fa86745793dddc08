"""flcache verify DIR [--json]: read every byte of a cache and say what is not as it was written."""

from __future__ import annotations

import json

from flcache.cache import Verification
from flcache.cache.storage import Location
from flcache.errors import DamagedError

from .setup.progress import verify_with_progress


def run(directory: Location, as_json: bool = False) -> None:
    """Print the result of `flcache.cache.verify_cache`. Raises DamagedError if there is damage."""
    found = verify_with_progress(directory)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _print(found)
    if not found.ok:
        raise DamagedError(
            f'{directory}: damaged in {len(found.damaged)} places; run "flcache repair {directory} --config C" with '
            "the configuration it was made with"
        )


def _print(found: Verification) -> None:
    for damage in found.damaged:
        clip = f"clip {damage.clip}: " if damage.clip else ""
        print(f"{damage.file}: {clip}{damage.problem}")
    if found.missing:
        print(f"not encoded yet, or lost: {len(found.missing)} shards, such as {found.missing[0]}")
    if found.ok:
        print(f"every byte of {found.clips} clips in {found.shards} shards is as it was written")
