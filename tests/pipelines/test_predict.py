"""`flcache predict` on real videos: every step once, contexts without their future, a page, and errors of one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from small_run import ENCODER, flcache, small_config
from trees import tree

from flcache.config import load_config
from flcache.encoder import ContextRule, EncoderSource, load_encoder, save_encoder
from flcache.errors import ConfigError, DecodeError, FlcacheError, PredictorError, SpecMismatch
from flcache.pipelines import export, predict, train
from flcache.pipelines.predict.forecast import Forecast
from flcache.pipelines.predict.model import ExportedModel, open_model
from flcache.pipelines.predict.steps import Steps, decoded_steps, encoded, encoded_windows, sliding
from flcache.videos import ClipRequest, ClipRule, DecodePool, decode_clip, write_dataset

STEPS, CONTEXT, AHEAD = 30, 2, 2
"""Steps of a long video, of a context, and after it."""


@pytest.fixture(scope="module")
def model(encoded: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor of clips of 4 steps, 2 frames each, at 8 frames a second; and its encoder."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    export.run(trained, folder, [f"cache.dir={encoded.parent / 'cache'}"])
    return folder


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of 60 frames, 8 a second: no whole number of clips."""
    root = tmp_path_factory.mktemp("long")
    write_dataset(root, train_videos=2, val_videos=1, frames=60, size=32)
    return sorted(root.rglob("t*.mp4"))


@pytest.fixture(scope="module")
def predicted(model: Path, long_videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes for both."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    done = flcache("predict", *long_videos, "--model", model, "--out", out, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps, skill over copying the last") == 2 and "predictions.html" in done.stdout
    return out


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, 60.0) as opened:
        yield opened


def all_frames(video: Path, count: int = 60) -> NDArray[np.uint8]:
    return decode_clip(video, ClipRequest(count, 0.0, None, 1, "drop")).frames


def test_every_step_after_the_first_context_is_predicted_from_those_before_it(
    predicted: Path, model: Path, long_videos: list[Path]
) -> None:
    opened = open_model(model, "cpu")
    for video in long_videos:
        found = np.load(predicted / f"{video.stem}.npz", allow_pickle=False)
        latents, predictions = torch.from_numpy(found["latents"]), torch.from_numpy(found["prediction"])
        expected, _ = opened.encode(all_frames(video))
        torch.testing.assert_close(latents, torch.from_numpy(expected))
        assert found["seconds"].tolist() == [0.25 * step + 0.0625 for step in range(STEPS)]
        assert found["first_step"].tolist() == list(range(CONTEXT, STEPS))
        assert found["valid"].tolist() == [[True, True]] * (STEPS - CONTEXT - 1) + [[True, False]]
        for start in range(STEPS - CONTEXT):
            expected = opened.predictor(latents[None, start : start + CONTEXT])[0]
            assert torch.equal(predictions[start], expected)
        standardised = [opened.predictor.statistics.standardise(each) for each in (latents, predictions)]
        error = (standardised[1][:, 0] - standardised[0][CONTEXT:]).square().mean((1, 2, 3))
        copied = (standardised[0][1:-1] - standardised[0][CONTEXT:]).square().mean((1, 2, 3))
        np.testing.assert_allclose(found["error"][:, 0], error, rtol=1e-4)
        np.testing.assert_allclose(found["copy_error"][:, 0], copied, rtol=1e-4)
        assert str(found["fingerprint"]) == opened.predictor.card.fingerprint


def test_twice_gives_the_same_bytes(predicted: Path, model: Path, long_videos: list[Path], tmp_path: Path) -> None:
    predict.run(long_videos, model, tmp_path, device="cpu")
    assert tree(tmp_path) == tree(predicted)


RULES = [ContextRule(), ContextRule("window", window=2), ContextRule("prefix", prefix_steps=2)]


def in_mode(model: Path, rule: ContextRule) -> ExportedModel:
    """The exported model with its encoder in another context mode."""
    encoder = load_encoder(EncoderSource(name=str(model / "encoder")), context=rule)
    return replace(open_model(model, "cpu"), encoder=encoder, target_encoder=encoder)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.mode)
def test_no_prediction_moves_with_the_pixels_that_it_predicts(
    rule: ContextRule, model: Path, long_videos: list[Path]
) -> None:
    """From step 9 on every pixel is inverted: what was predicted from steps before it keeps its bits, no other does."""
    opened, frames = in_mode(model, rule), all_frames(long_videos[0], 32)
    before, after = (predictions_of(opened, each) for each in (frames, inverted_from(frames, 9 * 2)))
    for start, (one, other) in enumerate(zip(before, after, strict=True)):
        assert np.array_equal(one, other) == (start + CONTEXT <= 9), start
    assert len(before) == 13


def inverted_from(frames: NDArray[np.uint8], first: int) -> NDArray[np.uint8]:
    return np.concatenate([frames[:first], 255 - frames[first:]])


def predictions_of(model: ExportedModel, frames: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Of every window of the steps in `frames`, which come in blocks of a clip."""
    content = frames.reshape(-1, 2, *frames.shape[1:])
    seconds = np.arange(len(frames), dtype=np.float64).reshape(-1, 2) / 8
    steps = Steps(content, content, seconds, np.ones(len(content), dtype=np.bool_), np.zeros((len(content), 0)))
    forecast, blocks = Forecast("video", 1), [steps[start : start + 4] for start in range(0, len(steps), 4)]
    for window in sliding(blocks, 4, 1):
        forecast.add(model, encoded(model, window))
    return [window.prediction for window in forecast.windows]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.mode)
@pytest.mark.parametrize("every", [1, 2])
def test_windows_are_clips_as_in_training(
    rule: ContextRule, every: int, model: Path, long_videos: list[Path], pool: DecodePool
) -> None:
    opened, video = in_mode(model, rule), long_videos[1]
    windows = list(encoded_windows(opened, pool, video, every))
    real = [window for window in windows if window.valid[CONTEXT]]
    assert len(real) == len(range(0, STEPS - CONTEXT, every))
    for number in (0, 1, 2, len(real) - 2, len(real) - 1):
        window = real[number]
        timestamps = tuple(number * every / 4 + frame / 8 for frame in range(8))
        clip = decode_clip(video, ClipRequest(8, timestamps[0], timestamps, None, "pad"))
        torch.testing.assert_close(torch.from_numpy(window.content), torch.from_numpy(opened.encode(clip.frames)[0]))
        assert window.valid.tolist() == clip.mask[::2].tolist()
        assert window.times.tolist() == [0.0625, 0.3125, 0.5625, 0.8125]


def test_a_stride_is_taken_at_the_rate_of_the_video(model: Path, long_videos: list[Path], pool: DecodePool) -> None:
    opened = replace(open_model(model, "cpu"), rule=ClipRule(frames=8, fps=None, stride=3))
    blocks = list(decoded_steps(opened, pool, long_videos[0]))
    frames = np.concatenate([block.frames for block in blocks])
    valid = np.concatenate([block.valid for block in blocks]).repeat(2)
    assert np.array_equal(frames[valid], all_frames(long_videos[0])[::3]) and valid.sum() == 20


def export_trained(encoded: Path, settings: list[str], folder: Path) -> None:
    """Train with `settings`, and export to `model` in `folder`."""
    train.run(load_config(encoded, [*settings, f"training.dir={folder / 'training'}"]))
    export.run(folder / "training", folder / "model")


def test_a_trained_encoder_sees_contexts_and_its_average_makes_the_truth(
    encoded: Path, long_videos: list[Path], tmp_path: Path
) -> None:
    settings = ["training.source=videos", "encoder_trainable=true", "training.ema_decay=0.5", "training.steps=2"]
    export_trained(encoded, settings, tmp_path)
    predict.run(long_videos[:1], tmp_path / "model", tmp_path / "out", every=2, device="cpu")
    found = np.load(tmp_path / "out" / f"{long_videos[0].stem}.npz")
    opened = open_model(tmp_path / "model", "cpu")
    latents, targets = opened.encode(all_frames(long_videos[0]))
    assert not np.allclose(latents, targets)
    expected = np.concatenate([latents[:CONTEXT], targets[CONTEXT:]])
    np.testing.assert_allclose(found["latents"], expected, rtol=1e-4, atol=1e-5)
    assert found["first_step"].tolist() == list(range(CONTEXT, STEPS, 2))


def test_a_flow_is_the_mean_of_samples_that_the_window_decides(
    encoded: Path, long_videos: list[Path], tmp_path: Path
) -> None:
    flow = ["predictor.kind=flow_matching", "training.loss=l2", "training.steps=2", "predictor.flow.sampler_steps=1"]
    export_trained(encoded, flow, tmp_path)
    for name in ("one", "two"):
        predict.run(long_videos[:1], tmp_path / "model", tmp_path / name, every=2, device="cpu")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_video_that_cannot_be_read_is_one_line_and_the_others_are_done(
    model: Path, long_videos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(long_videos[0].read_bytes()[:400])
    write_dataset(tmp_path / "short", train_videos=1, val_videos=1, frames=4, size=32)
    (short,) = (tmp_path / "short").rglob("t*.mp4")
    bad = [tmp_path / "gone.mp4", tmp_path / "text.mp4", tmp_path / "cut.mp4", short]
    done = flcache("predict", *bad, long_videos[0], "--model", model, "--out", tmp_path / "out", "--device", "cpu")
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.returncode == 1 and len(lines) == len(bad) and "Traceback" not in done.stderr
    assert all(str(path) in line for path, line in zip(bad, lines, strict=True))
    assert "shorter than a context of 2 steps" in lines[3]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{long_videos[0].stem}.npz", "predictions.html"}


def test_where_no_video_can_be_read_nothing_is_written(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="no such file"):
        predict.run([tmp_path / "gone.mp4"], model, tmp_path / "out", device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_damaged_video_is_refused_where_it_is_damaged(model: Path, shared_videos: Path, tmp_path: Path) -> None:
    for name in ("payload_cut", "payload_damaged", "corrupted", "audio", "empty"):
        with pytest.raises(DecodeError) as refused:
            predict.run([shared_videos / "bad" / f"{name}.mp4"], model, tmp_path / "out", device="cpu")
        assert "\n" not in str(refused.value) and name in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_videos_of_one_name_have_files_of_their_own(model: Path, long_videos: list[Path], tmp_path: Path) -> None:
    copied = [tmp_path / str(number) / "video.mp4" for number in range(2)]
    for path, original in zip(copied, long_videos, strict=True):
        path.parent.mkdir()
        shutil.copy(original, path)
    predict.run(copied, model, tmp_path / "out", every=2, device="cpu")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"video.npz", "video-2.npz", "predictions.html"}


def test_an_encoder_whose_tokens_the_user_states_predicts(
    videos: Path, long_videos: list[Path], tmp_path: Path
) -> None:
    content = small_config(videos, tmp_path)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    content["encoder"] = {"architecture": {"model_type": "deit", **sizes}, "leading_tokens": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    train.run(load_config(tmp_path / "config.yaml", ["training.source=videos", "training.steps=1"]))
    export.run(tmp_path / "training", tmp_path / "model")
    predict.run(long_videos[:1], tmp_path / "model", tmp_path / "out", device="cpu")
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".npz", ".html"}


def test_a_model_that_is_not_whole_is_refused_in_one_line(model: Path, long_videos: list[Path], tmp_path: Path) -> None:
    def refused(kind: type[FlcacheError], words: str) -> None:
        with pytest.raises(kind, match=words) as error:
            predict.run(long_videos, broken, tmp_path / "out", device="cpu")
        assert "\n" not in str(error.value)

    broken = tmp_path / "model"
    refused(PredictorError, "predictor: there is no such folder")
    shutil.copytree(model, broken)
    shutil.rmtree(broken / "encoder")
    refused(PredictorError, "encoder: no such folder")
    save_encoder(load_encoder(EncoderSource(architecture=ENCODER, seed=7)), broken / "encoder")
    refused(SpecMismatch, r"encoder\.weights differ.*flcache export")
    broken = model
    with pytest.raises(ConfigError, match="give 1 to 2"):
        predict.run(long_videos, model, tmp_path / "out", every=3, device="cpu")
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_not_finite_are_an_error(model: Path, long_videos: list[Path]) -> None:
    opened = open_model(model, "cpu")
    opened.predictor.statistics.std.zero_()
    with pytest.raises(PredictorError, match=r"video: latents or prediction are not finite at 0\.00 s"):
        predictions_of(opened, all_frames(long_videos[0], 8))


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(predicted: Path, browser: Chrome, width: int) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == 390}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get((predicted / "predictions.html").as_uri())
    assert browser.get_log("browser") == []
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chart-surprise")) == 2
    lines = browser.find_elements(By.CSS_SELECTOR, ".chart-surprise svg .line")
    assert len(lines) == 4 and all(line.size["width"] > 100 for line in lines)
    assert len(browser.find_elements(By.CSS_SELECTOR, "tbody tr")) == 2
    clips = browser.find_elements(By.NAME, "clip")
    assert len(clips) == 8
    drawn = "return [...document.querySelectorAll('canvas')].every((each) => each.width > 1)"
    WebDriverWait(browser, 20).until(lambda page: page.execute_script(drawn))
    browser.find_element(By.ID, "next").click()
    assert browser.find_element(By.ID, "status").text.startswith("Step")
    overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0, "only tables scroll sideways"
