"""The report as a user makes it: of a real run, from its folder, moved, without its videos, and opened in a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from small_run import flcache

from flcache.cache import LatentCache
from flcache.config import Config, load_config, to_yaml
from flcache.errors import TrainingError
from flcache.evaluation.report import TargetMoments
from flcache.pipelines import evaluate, report, train
from flcache.pipelines.report.player import gather_pictures
from flcache.pipelines.setup.run_config import run_config
from flcache.training import latest_checkpoint


@pytest.fixture(scope="module")
def finished(encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cache` and `training`, trained and evaluated, whose configuration names both where they were."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(encoded.parent / "cache", folder / "cache")
    content = yaml.safe_load(encoded.read_text(encoding="utf-8"))
    content["cache"]["dir"], content["training"]["dir"] = str(folder / "cache"), str(folder / "training")
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    train.run(load_config(folder / "config.yaml"))
    evaluate.run(load_config(folder / "config.yaml"))
    return folder


def test_the_page_of_a_run_opens_with_its_frames(finished: Path, browser: Chrome) -> None:
    result = flcache("report", finished)
    assert result.returncode == 0, result.stderr
    path = finished / "report.html"
    assert str(path) in result.stdout and path.stat().st_size < 5_000_000
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    assert len(browser.find_elements(By.NAME, "clip")) == 6, "all clips of a small split"
    notes = [element.text for element in browser.find_elements(By.CSS_SELECTOR, ".tile-video .tile-note, .notice")]
    assert len(notes) == 1 and notes[0].endswith(" s"), "frames are found"
    assert "6 steps of 4 clips" in browser.find_element(By.CLASS_NAME, "provenance").text


def test_a_training_folder_alone_is_enough_and_twice_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    pages = [tmp_path / "one.html", tmp_path / "two.html"]
    for page in pages:
        report.run(finished / "training", out=page)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_the_first_clips_are_enough_for_the_colours(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a split of 6 clips in batches of 2, no more are read than 3 clips need, and the pictures are of these."""
    monkeypatch.setattr("flcache.pipelines.report.player.MAX_CLIPS", 3)
    read: list[str] = []
    add = TargetMoments.add
    monkeypatch.setattr(TargetMoments, "add", lambda self, targets: (read.append("batch"), add(self, targets)))
    config = load_config(finished / "config.yaml", ["evaluation.batch_size=2"])
    player, _ = gather_pictures(config, latest_checkpoint(finished / "training" / "checkpoints"))
    assert len(read) == 2
    cache = LatentCache(finished / "cache", "val")
    assert [clip["id"] for clip in player["clips"]] == [cache.clip_id(index) for index in range(3)]


def test_a_moved_run_finds_its_cache_and_says_which_frames_it_lacks(finished: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    checkpoint = next((moved / "training" / "checkpoints").glob("step-00000006"))
    text = (checkpoint / "config.yaml").read_text(encoding="utf-8").replace(str(finished), "/nowhere")
    (checkpoint / "config.yaml").write_text(text, encoding="utf-8")
    report.run(moved, ["dataset.root=/nowhere/videos"])
    page = (moved / "report.html").read_text(encoding="utf-8")
    assert re.search(r'class="notice">The player lacks the frames of 6 clips', page)
    assert "dataset.root=PATH" in page and 'id="player"' in page


def test_a_run_that_is_not_evaluated_has_a_page(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "training", tmp_path / "training")
    (tmp_path / "training" / "evaluation.json").unlink()
    report.run(tmp_path)
    assert "Not evaluated yet" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("field", "value", "note"),
    [("fingerprint", "f00d", "evaluation.json is of other latents"), ("step", 1, "evaluation.json is of step 1, the ")],
)
def test_an_evaluation_of_something_else_is_noted(
    finished: Path, tmp_path: Path, field: str, value: object, note: str
) -> None:
    shutil.copytree(finished / "training", tmp_path / "training")
    path = tmp_path / "training" / "evaluation.json"
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    assert evaluation[field] != value
    path.write_text(json.dumps(evaluation | {field: value}), encoding="utf-8")
    report.run(tmp_path)
    assert note in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_live_run_has_pictures_of_what_its_encoder_gives(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "training", tmp_path / "training")
    report.run(tmp_path, ["training.source=videos"])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="player"' in page and "What the cache holds" not in page and "The player lacks" not in page


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint"):
        report.run(tmp_path)


def test_the_configuration_of_a_checkpoint_cannot_ask_for_remote_code(tmp_path: Path) -> None:
    """A run may come from anybody, and its configuration with it; who reports on it has the last word."""
    config = to_yaml(Config()).replace("trust_remote_code: false", "trust_remote_code: true")
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    assert load_config(tmp_path / "config.yaml").encoder.trust_remote_code
    assert not run_config(tmp_path, tmp_path, []).encoder.trust_remote_code
    assert run_config(tmp_path, tmp_path, ["encoder.trust_remote_code=true"]).encoder.trust_remote_code
