"""A plan that fits is read and not made again; one that does not says what has changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from trees import tree

from flcache.cache import LatentCache, plan_sources, read_plan, verify_cache
from flcache.config import Config, load_config
from flcache.errors import CacheError, DataError
from flcache.pipelines import encode
from flcache.pipelines.setup.planning import MissingShards, begin_planning, finish_planning


@pytest.fixture
def copied(config_file: Path, encoded: Path) -> Path:
    """A configuration file of its own over a copy of the finished cache."""
    shutil.copytree(encoded.parent / "cache", config_file.parent / "cache")
    return config_file


def few_videos(config_file: Path, videos: Path, number: int = 6) -> list[str]:
    """Overrides for the first training videos, in a folder of their own."""
    root = config_file.parent / "few"
    lines = (videos / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)[: number + 1]
    for line in lines[1:]:
        label, name, start, end, *_ = line.split(",")
        file = Path(label) / f"{name}_{int(start):06d}_{int(end):06d}.mp4"
        (root / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / file, root / file)
    (root / "train.csv").write_text("".join(lines), encoding="utf-8")
    return [f"dataset.root={root}", f"dataset.train={root}/train.csv", "dataset.val=null"]


def hide(config: Config) -> None:
    """No video can be found or read any more."""
    Path(str(config.dataset.root)).rename(Path(str(config.dataset.root)).with_name("away"))


def test_a_fitting_plan_is_read_without_the_videos(config_file: Path, videos: Path) -> None:
    overrides = few_videos(config_file, videos)
    config = load_config(config_file, overrides)
    encode.run(config)
    annotations = Path(str(config.dataset.train)).read_bytes()
    before = tree(Path(str(config.cache.dir)))
    hide(config)
    elsewhere = config_file.with_name("moved.csv")
    elsewhere.write_bytes(annotations)
    encode.run(load_config(config_file, [*overrides, f"dataset.train={elsewhere}", "dataset.max_missing_fraction=0"]))
    assert tree(Path(str(config.cache.dir))) == before


def test_a_changed_annotation_file_is_named_by_what_changed(copied: Path, videos: Path) -> None:
    before = tree(copied.parent / "cache")
    lines = (videos / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (copied.parent / "changed.csv").write_text("".join(lines[:-2]), encoding="utf-8")
    with pytest.raises(CacheError, match=r"the train clips are not .*: 2 clips removed, such as .*; go back to"):
        encode.run(load_config(copied, [f"dataset.train={copied.parent}/changed.csv"]))
    with pytest.raises(CacheError, match=r"cache\.shard_bytes or cache\.seed has changed"):
        encode.run(load_config(copied, ["cache.seed=1"]))
    (copied.parent / "sorted.csv").write_text("".join([lines[0], *sorted(lines[1:])]), encoding="utf-8")
    encode.run(load_config(copied, [f"dataset.train={copied.parent}/sorted.csv"]))  # the same clips
    after = tree(copied.parent / "cache")
    assert {name for name in before if before[name] != after[name]} <= {"plan.parquet"}
    encode.run(load_config(copied))
    assert tree(copied.parent / "cache") == before


def test_a_plan_without_sources_is_checked_once_and_gains_them(copied: Path) -> None:
    path, config = copied.parent / "cache" / "plan.parquet", load_config(copied)
    whole, sources = path.read_bytes(), plan_sources(path.parent)
    assert set(sources) == {"train", "val"}
    pq.write_table(pq.read_table(path).replace_schema_metadata(), path)
    assert not plan_sources(path.parent)
    assert set(begin_planning(path.parent, config).fresh) == {"train", "val"}
    encode.run(config)
    assert path.read_bytes() == whole and not begin_planning(path.parent, config).fresh


def test_a_folder_that_nobody_may_write_to_is_no_reason_to_stop(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied.parent / "cache" / "plan.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(), path)
    old = path.read_bytes()

    def refused(*_: object) -> None:
        raise CacheError("no permission")

    monkeypatch.setattr("flcache.cache.storage.LocalStore.write", refused)
    encode.run(load_config(copied))
    assert path.read_bytes() == old


def test_earlier_plans_keep_their_order_of_clips(config_file: Path, videos: Path) -> None:
    """They shuffled clips; now the clips of a video lie together, and a plan on disk stays what it is."""
    overrides = [*few_videos(config_file, videos), "clip.clips_per_video=3"]
    config = load_config(config_file, [*overrides, f"cache.dir={config_file.parent}/new"])
    encode.run(config)
    plan = read_plan(config_file.parent / "new")
    assert (plan["video_id"].to_numpy()[1:] != plan["video_id"].to_numpy()[:-1]).sum() == 5
    assert plan.groupby("video_id")["start_s"].apply(lambda starts: starts.is_monotonic_increasing).all()

    old = config_file.parent / "cache"
    shutil.copytree(config_file.parent / "new", old)
    for folder in ("commits", "shards"):
        shutil.rmtree(old / folder)
    from flcache.cache import write_plan
    from flcache.pipelines.setup.clips import assign_split, read_split

    (old / "plan.parquet").unlink()
    shape = LatentCache(config_file.parent / "new").latent_shape
    write_plan(old, assign_split(config, shape, read_split(config, "train"), by_video=False))
    ids = read_plan(old)["clip_id"].tolist()
    assert ids != plan["clip_id"].tolist()
    encode.run(load_config(config_file, overrides))
    assert read_plan(old)["clip_id"].tolist() == ids and verify_cache(old).ok and plan_sources(old)


def test_tasks_are_made_shard_by_shard_and_look_for_their_own_videos(copied: Path) -> None:
    config, cache_dir = load_config(copied), copied.parent / "cache"
    for commit in (cache_dir / "commits").glob("train-00000[0-2].json"):
        commit.unlink()
    planning = begin_planning(cache_dir, config)
    plan = finish_planning(planning, LatentCache(cache_dir).latent_shape)
    tasks = MissingShards(planning, plan)
    planned = read_plan(cache_dir).query("split == 'train' and shard < 3")
    assert len(tasks) == 3 and tasks.num_clips == len(planned)
    clips = [clip for task in tasks for clip in task.clips]
    assert [clip.clip_id for clip in clips] == planned["clip_id"].tolist()
    assert all(clip.file is not None and clip.file.is_file() for clip in clips)
    assert len(MissingShards(planning, plan, (1, 2))) == 1


def test_a_plan_that_leads_out_of_the_root_is_not_followed(copied: Path, videos: Path) -> None:
    """Digests alone would let it: they are of the annotations, whatever rows a stranger wrote beside them."""
    path = copied.parent / "cache" / "plan.parquet"
    table = pq.read_table(path)
    names = ["/etc/passwd" if row == 0 else name for row, name in enumerate(table["video"].to_pylist())]
    column = table.schema.get_field_index("video")
    pq.write_table(table.set_column(column, "video", [names]), path)
    next((copied.parent / "cache" / "commits").glob("train-000000.json")).unlink()
    with pytest.raises(DataError, match=r"'/etc/passwd' leads out of dataset\.root"):
        encode.run(load_config(copied))


def test_a_video_that_arrives_is_encoded_when_asked_and_the_others_keep_their_bytes(
    config_file: Path, videos: Path, encoded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = few_videos(config_file, videos)
    config = load_config(config_file, overrides)
    cache_dir, root = Path(str(config.cache.dir)), Path(str(config.dataset.root))
    late, bad, *_ = sorted(root.rglob("*.mp4"))
    late.rename(root / "late")
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    config = load_config(config_file, [*overrides, "encode.max_failed_fraction=1"])
    encode.run(config)
    assert "1 x find: no file" in capsys.readouterr().out
    opened = LatentCache(cache_dir)
    before = {clip.clip_id: clip.latents for clip in LatentCache(cache_dir)}
    (root / "late").rename(late)
    encode.run(config)
    said = capsys.readouterr().out
    assert len(LatentCache(cache_dir)) == 4 and "1 x find: no file" in said and "--retry-failed" in said
    encode.run(config, retry_failed=True)
    after = LatentCache(cache_dir)
    assert len(after) == 5 and [failure.reason for failure in after.failures()] == ["cut off"]
    bad.write_bytes(whole)
    encode.run(config, retry_failed=True)
    after = LatentCache(cache_dir)
    assert len(after) == 6 and not after.failures() and verify_cache(cache_dir).ok
    clips = {clip.clip_id: clip.latents for clip in after}
    assert len(before) == 4 and all((clips[clip_id] == latents).all() for clip_id, latents in before.items())
    with pytest.raises(CacheError, match="has other clips since the cache was opened"):
        opened[0]
    reference = {clip.clip_id: clip.latents for clip in LatentCache(encoded.parent / "cache", "train")}
    assert all(abs(clips[clip_id] - reference[clip_id]).max() < 1e-4 for clip_id in clips)
    channels = after.spec.channels
    assert channels is not None and channels["count"] == sum(commit.positions for commit in after.commits)
    held = tree(cache_dir)
    encode.run(config, retry_failed=True)
    assert tree(cache_dir) == held
