"""The spec refuses other latents by name; the plan is a pure function of its clips, and refuses others."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from small_cache import clip_table, hard_spec, make_cache
from trees import tree

from flcache.cache import (
    assign_shards,
    create_or_check,
    differences,
    make_spec,
    read_plan,
    read_spec,
    write_plan,
)
from flcache.cache.format.plan import RULE_COLUMNS
from flcache.cache.format.record import seal
from flcache.errors import CacheError, DamagedError, SpecMismatch


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def changed(section: str, **fields: Any) -> dict[str, Any]:
    spec = hard_spec()
    return spec | {section: spec[section] | fields}


MISMATCHES = {
    "encoder.digest": changed("encoder", digest="1" * 64),
    "clip.fps: cache has 4.0, this run has 8.0": changed("clip", fps=8.0),
    "clip.stride: cache has none, this run has 2": changed("clip", stride=2),
    'context.mode: cache has "step", this run has "full"': changed("context", mode="full", seen_until=[3] * 4),
    'codec: cache has "float16", this run has "float32"': hard_spec("float32"),
    "processor: cache has none": hard_spec() | {"processor": {"crop_size": 64}},
}


@pytest.mark.parametrize("message", MISMATCHES)
def test_other_spec_is_refused_by_name_and_touches_nothing(tmp_path: Path, message: str) -> None:
    make_cache(tmp_path)
    before = state(tmp_path)
    with pytest.raises(SpecMismatch) as caught:
        create_or_check(tmp_path, MISMATCHES[message], {"device": "cpu"})
    assert message in str(caught.value)
    assert state(tmp_path) == before


def test_every_differing_field_is_named() -> None:
    other = changed("clip", fps=8.0, frames=16) | {"codec": "float32"}
    fields = [line.split(":")[0] for line in differences(hard_spec(), other)]
    assert fields == ["clip.fps", "clip.frames", "codec"]
    assert differences(hard_spec(), hard_spec()) == []


def test_whole_number_and_float_differ_as_their_fingerprints_do() -> None:
    other = changed("clip", fps=4)
    assert make_spec(hard_spec()).fingerprint != make_spec(other).fingerprint
    assert differences(hard_spec(), other) == ["clip.fps: cache has 4.0, this run has 4"]


def test_soft_fields_only_warn_and_do_not_count(tmp_path: Path) -> None:
    spec, warnings = create_or_check(tmp_path, hard_spec(), {"torch": "2.12"})
    assert warnings == []
    again, warnings = create_or_check(tmp_path, hard_spec(), {"torch": "2.13"})
    assert warnings == ['torch: cache has "2.12", this run has "2.13"']
    assert again.fingerprint == spec.fingerprint == read_spec(tmp_path).fingerprint


def test_statistics_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    spec = read_spec(make_cache(tmp_path))
    assert spec.channels is not None
    assert spec.fingerprint == make_spec(hard_spec()).fingerprint


def test_newer_format_names_both_versions(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"format": "flc2", "something": "new"}')
    with pytest.raises(CacheError, match="format flc2, but this flcache reads flc1"):
        read_spec(tmp_path)


def test_every_damaged_spec_is_noticed(tmp_path: Path) -> None:
    create_or_check(tmp_path, hard_spec(), {})
    path = tmp_path / "spec.json"
    whole = path.read_bytes()
    flips = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(0, len(whole), 3)]
    for content in [b"", b"[]", b"\xff", whole[:-1], *flips]:
        path.write_bytes(content)
        with pytest.raises(CacheError, match=r"spec\.json"):
            read_spec(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"layout": {"shape": [4, 2, 2]}},
        {"layout": {"shape": [4, 2, 0, 6]}},
        {"layout": {"shape": [4, 2**42, 2, 6]}},
        {"layout": {"shape": [4, 2**62, 2**40, 6]}},
        {"layout": None},
        {"context": {"seen_until": [0, 1]}},
        {"context": {"seen_until": "0123"}},
        {"codec": "zip"},
        {"codec": ["float16"]},
    ],
)
def test_spec_that_no_reader_could_use_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    with pytest.raises(CacheError):
        create_or_check(tmp_path, hard_spec() | damage, {})
    assert not list(tmp_path.iterdir())


def test_foreign_fingerprint_is_damage(tmp_path: Path) -> None:
    create_or_check(tmp_path, hard_spec(), {})
    content = json.loads((tmp_path / "spec.json").read_bytes())
    del content["xxh3_64"]
    (tmp_path / "spec.json").write_bytes(seal(content | {"fingerprint": "0" * 64}))
    with pytest.raises(DamagedError, match="fingerprint"):
        read_spec(tmp_path)
    (tmp_path / "spec.json").write_bytes(seal({"format": "flc1", "spec": hard_spec()}))
    with pytest.raises(DamagedError, match=r"spec\.json"):
        read_spec(tmp_path)


def assign(clips: pd.DataFrame, split: str = "train", **options: int) -> pd.DataFrame:
    return assign_shards(clips, split, **({"clip_bytes": 100, "shard_bytes": 450, "seed": 0} | options))


def test_plan_is_every_clip_once_in_whole_shards() -> None:
    plan = assign(clip_table(23))
    assert sorted(plan["clip_id"]) == sorted(clip_table(23)["clip_id"])
    assert plan.groupby("shard").size().tolist() == [4] * 5 + [3]
    assert plan["slot"].tolist() == ([0, 1, 2, 3] * 6)[:23]
    assert plan["clip_id"].tolist() != sorted(plan["clip_id"])


def test_plan_depends_on_the_clips_alone() -> None:
    clips = clip_table(23)
    plan = assign(clips)
    pd.testing.assert_frame_equal(plan, assign(clips[::-1]))
    assert assign(clips, seed=1)["clip_id"].tolist() != plan["clip_id"].tolist()
    assert assign(clips, "val")["clip_id"].tolist() != plan["clip_id"].tolist()
    assert plan["clip_id"].tolist()[:3] == ["video000-0", "video006-0", "video011-0"], "for ever"


def test_shard_holds_at_least_one_clip() -> None:
    assert assign(clip_table(3), shard_bytes=1)["shard"].tolist() == [0, 1, 2]


def test_plan_round_trips_and_has_the_same_bytes(tmp_path: Path) -> None:
    clips = clip_table(9)
    clips.loc[3, "timestamps"] = None
    plan = assign(clips)
    for name in ("first", "second"):
        found = write_plan(tmp_path / name, plan)
        assert found["label"].tolist() == ["jump" if label == "jump" else None for label in plan["label"]]
        assert found["timestamps"].map(lambda seconds: None if seconds is None else list(seconds)).tolist() == [
            None if seconds is None else list(seconds) for seconds in plan["timestamps"]
        ]
        assert found["slot"].tolist() == plan["slot"].tolist()
    assert tree(tmp_path / "first") == tree(tmp_path / "second")


def test_split_added_later_equals_both_at_once(tmp_path: Path) -> None:
    train, val = assign(clip_table(9, "a")), assign(clip_table(4, "b"), "val")
    write_plan(tmp_path / "later", val)
    write_plan(tmp_path / "later", train)
    write_plan(tmp_path / "once", pd.concat([train, val], ignore_index=True))
    assert tree(tmp_path / "later") == tree(tmp_path / "once")
    assert read_plan(tmp_path / "once")["split"].tolist() == ["train"] * 9 + ["val"] * 4


def with_rule(clips: pd.DataFrame) -> pd.DataFrame:
    return clips.assign(frames=8, stride=None, short="pad")


def write_older_plan(cache_dir: Path, plan: pd.DataFrame) -> bytes:
    """The plan as it was before it held what decoding needs of the clip rule, and its bytes."""
    write_plan(cache_dir, plan)
    path = cache_dir / "plan.parquet"
    pq.write_table(pq.read_table(path).drop_columns(list(RULE_COLUMNS)), path)
    return path.read_bytes()


def test_a_plan_holds_what_decoding_needs(tmp_path: Path) -> None:
    strided = clip_table(3).assign(timestamps=None, frames=8, stride=4, short="drop")
    found = write_plan(tmp_path, assign(strided))
    assert found[list(RULE_COLUMNS)].values.tolist() == [[8, 4, "drop"]] * 3
    imported = write_plan(tmp_path / "imported", assign(clip_table(2)))
    assert imported[list(RULE_COLUMNS)].values.tolist() == [[None, None, None]] * 2


def test_an_older_plan_has_the_rule_of_the_spec_and_is_not_rewritten(tmp_path: Path) -> None:
    hard = hard_spec() | {"clip": {"frames": 8, "fps": 4.0, "stride": None, "short": "pad"}}
    create_or_check(tmp_path, hard, {})
    train, val = assign(with_rule(clip_table(9, "a"))), assign(with_rule(clip_table(4, "b")), "val")
    older = write_older_plan(tmp_path, train)
    assert read_plan(tmp_path)[list(RULE_COLUMNS)].values.tolist() == [[8, None, "pad"]] * 9
    write_plan(tmp_path, train)
    assert (tmp_path / "plan.parquet").read_bytes() == older
    with pytest.raises(CacheError, match="had video_id"):
        write_plan(tmp_path, train.assign(video_id="other"))
    found = write_plan(tmp_path, val)
    assert found["split"].tolist() == ["train"] * 9 + ["val"] * 4
    assert found[list(RULE_COLUMNS)].values.tolist() == [[8, None, "pad"]] * 13
    assert not set(RULE_COLUMNS) & set(pq.read_schema(tmp_path / "plan.parquet").names)


CHANGES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "3 clips added, such as video009-0": lambda clips: assign(clip_table(12)),
    "2 clips removed, such as video007-0": lambda clips: assign(clip_table(7)),
    "1 clips added, such as other000-0 and 9 clips removed": lambda clips: assign(clip_table(1, "other")),
    "cache.shard_bytes or cache.seed": lambda clips: assign(clips, shard_bytes=300),
    "clip video004-0 had label None, now 'run'": lambda clips: assign(
        clips.assign(label=clips["label"].mask(clips.index == 4, "run"))
    ),
}


@pytest.mark.parametrize("message", CHANGES)
def test_other_plan_says_what_changed_and_touches_nothing(tmp_path: Path, message: str) -> None:
    clips = clip_table(9)
    write_plan(tmp_path, assign(clips))
    before = state(tmp_path)
    with pytest.raises(CacheError, match=message):
        write_plan(tmp_path, CHANGES[message](clips))
    write_plan(tmp_path, assign(clips))
    assert state(tmp_path) == before


def at_once(*writes: Callable[[], Any]) -> list[Any]:
    """What each returned or raised, all of them started together."""
    together = Barrier(len(writes))

    def run(write: Callable[[], Any]) -> Any:
        together.wait()
        try:
            return write()
        except CacheError as error:
            return error

    with ThreadPoolExecutor(len(writes)) as pool:
        return list(pool.map(run, writes))


def test_of_two_first_plans_one_stands_and_the_other_run_is_told(tmp_path: Path) -> None:
    for number in range(10):
        cache_dir = tmp_path / str(number)
        plans = [assign(clip_table(9)), assign(clip_table(8))]
        results = at_once(*(partial(write_plan, cache_dir, plan) for plan in plans))
        refused = [result for result in results if isinstance(result, CacheError)]
        kept = [result for result in results if not isinstance(result, CacheError)]
        assert len(kept) == len(refused) == 1 and "are not those this cache was planned for" in str(refused[0])
        assert read_plan(cache_dir).equals(kept[0])


def test_splits_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    for number in range(10):
        cache_dir = tmp_path / str(number)
        splits = ("train", "val", "test")
        results = at_once(*(partial(write_plan, cache_dir, assign(clip_table(4, split), split)) for split in splits))
        assert not [result for result in results if isinstance(result, CacheError)]
        assert set(read_plan(cache_dir)["split"]) == set(splits)


def test_clip_in_two_splits_is_refused(tmp_path: Path) -> None:
    write_plan(tmp_path, assign(clip_table(3)))
    before = state(tmp_path)
    with pytest.raises(CacheError, match="clip video001-0: the id is there twice"):
        write_plan(tmp_path, assign(clip_table(9)[1:2], "val"))
    assert state(tmp_path) == before


def test_damaged_plan_is_clear(tmp_path: Path) -> None:
    write_plan(tmp_path, assign(clip_table(3)))
    path = tmp_path / "plan.parquet"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DamagedError, match=r"plan\.parquet: not a readable plan"):
        read_plan(tmp_path)
