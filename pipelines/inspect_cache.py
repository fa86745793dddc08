"""flcache inspect-cache DIR [--json]: what is in a cache, how much of it is done, what failed and why.

Lists every failure with --json, else one example for each stage and reason.
"""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from flcache.cache import LatentCache, failure_groups, summary
from flcache.cache.storage import Location


def run(directory: Location, as_json: bool = False) -> None:
    """Print the summary of the cache at `directory`. Raises CacheError where there is none."""
    found = summary(directory)
    if as_json:
        print(json.dumps(found))
        return
    console = Console(soft_wrap=True)
    console.print(_headline(found), highlight=False)
    console.print(_splits(found["splits"]))
    for group in failure_groups(LatentCache(directory).failures()):
        console.print(f"failed      {group}", highlight=False, markup=False)
    for leftover in found["leftovers"]:
        console.print(f"left by a running or killed encode: {leftover}", highlight=False)


def _headline(found: dict[str, Any]) -> str:
    latents, context = found["latents"], found["context"]
    shape = " x ".join(map(str, latents["shape"]))
    decoders = ", ".join(f"{name} {count}" for name, count in found["decoders"].items())
    return "\n".join(
        [
            f"{found['path']}: {found['format']}, {decimal(found['bytes_on_disk'])}",
            f"fingerprint {found['fingerprint']}",
            f"latents     {shape} (steps, rows, columns, channels) as {latents['codec']}, "
            f"{decimal(latents['clip_bytes'])} a clip",
            *_fidelity("kept       ", _kept(found["keep"]), found["fidelity"]["keep"]),
            *_fidelity("fidelity   ", latents["codec"], found["fidelity"]["codec"]),
            *_arrays(found["arrays"]),
            f"context     {context['mode']}",
            f"decoded by  {decoders or 'nothing yet'}",
            f"statistics  {'complete' if found['statistics'] else 'not complete: some training shards are missing'}",
        ]
    )


def _arrays(arrays: dict[str, list[int]]) -> list[str]:
    """A line on the arrays of the videos' frames, if there are any."""
    words = ", ".join(f"{name} ({numbers} numbers a step)" for name, (_, numbers) in arrays.items())
    return [f"arrays      {words}"] if words else []


def _kept(keep: dict[str, Any] | None) -> str:
    """In words: the part of the encoder's latents that is stored."""
    if keep is None:
        return "all"
    pooled = ["means of 2 x 2 patches"] if keep["pool"] else []
    components = [f"{keep['pca']} of {keep['shape'][3]} components"] if keep["pca"] else []
    variance = f", {keep['variance_kept']:.2%} of the variance" if keep["pca"] else ""
    return ", ".join(pooled + components) + variance


def _fidelity(heading: str, what: str, found: dict[str, Any] | None) -> list[str]:
    """A line on how close the stored latents are to the encoder's; none if that was not measured."""
    if found is None:
        return []
    cosines = f"cosine {found['mean_cosine']:.6f} on average and {found['min_cosine']:.6f} at worst"
    return [f"{heading} {what}: relative error {found['relative_l2']:.3%}, {cosines}"]


def _splits(splits: dict[str, dict[str, int]]) -> Table:
    table = Table("split", title="Clips")
    for heading in ("videos", "planned", "cached", "failed", "shards", "bytes"):
        table.add_column(heading, justify="right")
    for name, split in splits.items():
        shards = f"{split['committed_shards']}/{split['planned_shards']}"
        counts = [split["videos"], split["planned_clips"], split["clips"], split["failed"]]
        table.add_row(name, *map(str, counts), shards, decimal(split["tar_bytes"]))
    return table
