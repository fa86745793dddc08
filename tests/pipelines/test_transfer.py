"""`flcache push` and `pull`: to a real S3 server and back, over a road that loses and spoils, killed and gone on."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from forked import Forked, command_line
from small_run import flcache
from trees import tree

from flcache.cache import LatentCache
from flcache.config import load_config
from flcache.pipelines.transfer.manifest import MANIFEST, Digest, Manifest
from flcache.sealed import sealed


def cache_of(config: Path) -> Path:
    return Path(str(load_config(config).cache.dir))


def test_a_cache_goes_to_a_bucket_and_comes_back(encoded: Path, bucket: str, tmp_path: Path) -> None:
    cache, back = cache_of(encoded), tmp_path / "back"
    pushed = flcache("push", cache, bucket, "--license", "cc-by-4.0")
    assert pushed.returncode == 0, pushed.stderr
    pulled = flcache("pull", bucket, back)
    assert pulled.returncode == 0, pulled.stderr
    assert tree(back) == tree(cache) and len(LatentCache(back, "train")) == 24
    again = flcache("push", cache, bucket)
    assert again.returncode == 0 and "; 0 sent" in again.stdout, again.stderr
    tar = next(back.glob("shards/*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    assert "; 1 fetched" in flcache("pull", bucket, back).stdout and tree(back) == tree(cache)


def test_killed_on_the_way_it_goes_on(encoded: Path, bucket: str, tmp_path: Path) -> None:
    cache, back, dice = cache_of(encoded), tmp_path / "back", random.Random(5)
    for command in (["push", cache, bucket], ["pull", bucket, back]):
        for _ in range(3):
            run = Forked(command_line, *command)
            time.sleep(dice.uniform(0.3, 1.5))
            run.kill()
            run.wait()
        done = flcache(*command)
        assert done.returncode == 0, done.stderr
    assert {name: content for name, content in tree(back).items() if not name.endswith(".pull")} == tree(cache)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its last file to the collector
def test_the_readme_says_what_it_is_and_its_code_reads_it(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flcache("push", cache_of(encoded), f"file://{tmp_path}/there", "--license", "mit").returncode == 0
    readme = (tmp_path / "there" / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("---\nlicense: mit\n") and LatentCache(cache_of(encoded)).fingerprint in readme
    assert "# Latents of videos, by a vjepa2 with random weights\n" in readme
    assert "| train | 24 | 0 | 24 |" in readme and "None." in readme
    monkeypatch.chdir(tmp_path / "there")
    exec(compile(readme.split("```python\n")[1].split("```")[0], "README.md", "exec"), {})
    first = LatentCache(cache_of(encoded), "train").commits[0]
    assert len(capsys.readouterr().out.splitlines()) == first.clips > 0


def test_an_exported_model_comes_back(trained: Path, tmp_path: Path) -> None:
    assert flcache("export", trained, tmp_path / "model").returncode == 0
    for command in (["push", tmp_path / "model", tmp_path / "there"], ["pull", tmp_path / "there", tmp_path / "back"]):
        done = flcache(*command)
        assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "back") == tree(tmp_path / "model")
    card = tmp_path / "back" / "predictor" / "predictor.json"
    card.write_text(card.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert_one_line("holds another model", "pull", tmp_path / "there", tmp_path / "back")
    assert 'load_predictor("DIR/predictor")' in (tmp_path / "there" / "README.md").read_text(encoding="utf-8")


def test_mistakes_are_one_line(encoded: Path, encoded_jointly: Path, tmp_path: Path) -> None:
    cache, there = cache_of(encoded), tmp_path / "there"
    for words, *command in (
        ("neither a cache", "push", tmp_path, there),
        ("nothing was pushed here", "pull", there, tmp_path / "back"),
        ("such as s3://bucket/folder", "push", cache, "nonsense://x"),
    ):
        assert_one_line(words, *command)
    assert flcache("push", cache, there).returncode == 0
    assert_one_line("holds another cache", "push", cache_of(encoded_jointly), there)
    assert_one_line("holds another cache", "pull", there, cache_of(encoded_jointly))
    whole = (there / MANIFEST).read_text(encoding="utf-8")
    (there / MANIFEST).write_text(whole[:-9], encoding="utf-8")
    assert_one_line("remove it, and push again", "push", cache, there)
    (there / MANIFEST).write_text(whole, encoding="utf-8")
    next((there / "shards").glob("*.tar")).write_bytes(b"spoiled")
    assert_one_line("arrives as other bytes than were pushed", "pull", there, tmp_path / "back")
    assert not list((tmp_path / "back").rglob("*.pull"))


def assert_one_line(words: str, *command: str | Path) -> None:
    done = flcache(*command)
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert done.returncode == 1 and len(errors) == 1 and words in errors[0], done.stderr


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a\\b", "", "a//b"])
def test_a_hostile_manifest_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    manifest = Manifest("cache", "f00d", {name: Digest(1, "0")}, complete=True)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / MANIFEST).write_text(manifest.text(), encoding="utf-8")
    assert_one_line("not a manifest of flcache push", "pull", tmp_path / "there", tmp_path / "in" / "back")
    (tmp_path / "there" / MANIFEST).write_text(sealed({"format": "flcache-push-9"}), encoding="utf-8")
    assert_one_line("not a manifest of flcache push", "pull", tmp_path / "there", tmp_path / "in" / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
