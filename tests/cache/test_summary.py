"""The summary of a cache: whole, half done, or just begun."""

from __future__ import annotations

import json
from pathlib import Path

from small_cache import make_cache, plan_cache, write_shard

from flcache.cache import read_plan, summary


def test_summary_of_a_whole_cache(tmp_path: Path) -> None:
    found = summary(make_cache(tmp_path))
    assert json.loads(json.dumps(found)) == found
    train, val = found["splits"]["train"], found["splits"]["val"]
    assert (train["planned_shards"], train["committed_shards"], train["clips"], train["failed"]) == (5, 5, 22, 1)
    assert (val["planned_clips"], val["clips"], val["videos"]) == (5, 4, 5)
    assert found["latents"] == {"shape": [4, 2, 2, 6], "codec": "float16", "dtype": "float16", "clip_bytes": 192}
    assert found["decoders"] == {"decord": 26} and found["statistics"] and not found["leftovers"]
    assert found["bytes_on_disk"] == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert {failure["reason"] for failure in found["failures"]} == {"cut off"} and len(found["failures"]) == 2


def test_summary_of_a_half_done_cache(tmp_path: Path) -> None:
    spec = plan_cache(tmp_path)
    assert summary(tmp_path)["splits"]["train"]["committed_shards"] == 0
    for shard in (0, 3):
        write_shard(tmp_path, spec, "train", shard, read_plan(tmp_path).query("split == 'train' and shard == @shard"))
    (tmp_path / "commits" / "train-000003.json").unlink()
    (tmp_path / "shards" / ".train-000004.tar.01234567.tmp").touch()
    found = summary(tmp_path)
    assert found["splits"]["train"]["committed_shards"] == 1 and found["splits"]["train"]["clips"] == 4
    assert not found["statistics"]
    assert found["leftovers"] == [
        "shards/.train-000004.tar.01234567.tmp",
        "shards/train-000003.idx",
        "shards/train-000003.tar",
    ]
