"""The report without a browser: what its headline says, what its pictures hold, and that it needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example_report import (
    CHANNELS,
    CONTEXT,
    GRID,
    HORIZONS,
    cache_summary,
    evaluation,
    example_report,
    full_evaluation,
    player,
    rolled_clips,
)
from PIL import Image

from flcache.errors import DataError
from flcache.evaluation.report import (
    TargetMoments,
    clips_that_fit,
    frame_side,
    player_content,
    render,
    seen_region,
    write_report,
)
from flcache.evaluation.report.charts import latents_chart, loss_chart, reference_chart, skill_chart, validation_chart
from flcache.evaluation.report.verdict import horizon_words, verdict


@pytest.mark.parametrize(
    ("skills", "width", "headline"),
    [
        ([{"copy_last": 0.5, "ridge": 0.2}] * 4, 0.05, "Beats every baseline at every horizon, 1 to 4"),
        (
            [{"copy_last": 0.5, "ridge": 0.2}, {"copy_last": 0.5, "ridge": 0.01}],
            0.05,
            "Beats every baseline at horizon 1",
        ),
        ([{"copy_last": 0.5, "ridge": 0.01}], 0.05, "Does not beat every baseline at any horizon"),
        ([{"copy_last": 0.5, "ridge": 0.01}], None, "Beats every baseline at its only horizon"),
        ([{"copy_last": -0.5}] * 2, 0.05, "Does not beat copy last at any horizon"),
        ([{"copy_last": 0.5}, {"copy_last": None}], 0.05, "Beats copy last at horizon 1"),
        ([{"copy_last": None}], 0.05, "Does not beat copy last at any horizon"),
        ([{"copy_last": 0.5, "linear": None}] * 2, 0.05, "Does not beat every baseline at any horizon"),
        ([{"copy_last": 0.5, "linear": math.nan}], 0.05, "Does not beat every baseline at any horizon"),
        ([{"copy_last": 0.5, "linear": math.inf}], 0.05, "Does not beat every baseline at any horizon"),
        ([{"copy_last": 0.5}], math.nan, "No verdict: too few videos"),
        ([], 0.05, "Not evaluated yet"),
    ],
)
def test_the_headline_says_where_it_is_ahead(skills: list[Any], width: float | None, headline: str) -> None:
    assert verdict(evaluation(skills, width=width), leak=False).headline == headline


def test_the_detail_names_who_is_level_and_who_is_ahead() -> None:
    skills = [{"copy_last": 0.5, "ridge": skill} for skill in (0.2, 0.01, -0.02, -0.3)]
    detail = verdict(evaluation(skills), leak=False).detail
    assert detail == "Level with ridge at horizons 2 and 3. Behind ridge at horizon 4."
    assert "no intervals" in verdict(evaluation(skills, width=None), leak=False).detail


def test_the_detail_names_what_has_no_finite_skill_and_where_videos_are_too_few() -> None:
    content = evaluation([{"copy_last": 0.5, "linear": 0.5}, {"copy_last": 0.5, "linear": None}])
    assert verdict(content, leak=False).detail == "No finite skill over linear at horizon 2."
    few = verdict(evaluation([{"copy_last": 0.5}], width=math.nan), leak=False)
    assert few.detail == ("Skills are shown without intervals, which want two videos.")


def test_horizons_without_clips_are_left_out() -> None:
    content = evaluation([{"copy_last": 0.5}, {"copy_last": None}])
    content["horizons"][1]["clips"] = 0
    assert verdict(content, leak=False).headline == "Beats copy last at its only horizon"


@pytest.mark.parametrize("lost", [None, math.nan])
def test_a_page_of_a_prediction_that_diverged_says_so(lost: float | None) -> None:
    skills: list[Any] = [dict.fromkeys(("copy_last", "linear"), lost)] * 2
    page = render(example_report(evaluation=evaluation(skills) | {"fingerprint": "f00d"}))
    assert "Does not beat every baseline at any horizon" in page and 'id="chart-skill"' not in page


def test_a_page_of_a_generative_predictor_has_its_samples() -> None:
    content = full_evaluation()
    for row in content["horizons"]:
        row["samples"] = {"samples": 8, "mean": 0.4, "single": 0.71, "single_skill": -0.79, "energy": 0.43}
    page = render(example_report(evaluation=content))
    for text in ("One sample", "Energy score", "\N{MINUS SIGN}0.79", "of the mean of its samples"):
        assert text in page
    assert "of the mean of its samples" not in render(example_report())


def test_a_leak_is_the_headline_and_a_banner() -> None:
    assert verdict(full_evaluation(), leak=True).headline == "These numbers do not measure prediction"
    assert 'class="leak" role="alert"' in render(example_report(leak=True))
    assert 'class="leak"' not in render(example_report())


def test_no_evaluation_is_said() -> None:
    page = render(example_report(evaluation=None))
    assert "Not evaluated yet" in page and 'id="chart-skill"' not in page and 'id="chart-loss"' in page


def test_horizons_in_words() -> None:
    assert horizon_words([2]) == "horizon 2"
    assert horizon_words([1, 2, 3, 5, 7, 8]) == "horizons 1 to 3, 5, 7 and 8"


def test_charts_have_a_line_and_a_band_for_every_baseline() -> None:
    rows = full_evaluation()["horizons"]
    chart = skill_chart(rows)
    assert chart is not None
    assert [line.name for line in chart.lines] == ["copy last", "mean of context", "linear", "dataset mean", "ridge"]
    assert all(len(line.marks) == HORIZONS and line.band for line in chart.lines)
    tops = sorted(line.label_top for line in chart.lines)
    assert min(np.diff(tops)) > 6 and tops[-1] <= 100
    reference = reference_chart(rows)
    assert reference is not None
    assert {line.name for line in reference.lines} == {
        "prediction",
        "mean of context",
        "linear",
        "dataset mean",
        "ridge",
    }
    assert {line.name for line in reference.lines if line.band} == {"prediction", "ridge"}


def test_charts_do_without_intervals_and_without_some_values() -> None:
    skills: list[Any] = [{"copy_last": 0.5, "linear": None}, {"copy_last": None, "linear": -40.0}, {"copy_last": 0.3}]
    chart = skill_chart(evaluation(skills, width=None)["horizons"])
    assert chart is not None
    assert [(line.name, len(line.marks), line.band) for line in chart.lines] == [
        ("copy last", 2, ""),
        ("linear", 1, ""),
    ]
    assert reference_chart(evaluation([{"copy_last": 0.5}])["horizons"]) is None


def test_a_baseline_far_below_copying_leaves_the_plot_instead_of_flattening_it() -> None:
    content = full_evaluation()["horizons"]
    for row in content:
        row["baselines"]["linear"]["skill_over_copy_last"] = -30.0
    chart = reference_chart(content)
    assert chart is not None and chart.y_ticks[0].text == "\N{MINUS SIGN}0.5"
    line = next(line for line in chart.lines if line.key == "3")
    assert line.name == "linear \N{DOWNWARDS ARROW}" and line.marks == ()


def test_long_runs_are_thinned_and_empty_ones_have_no_chart() -> None:
    losses = [{"step": float(step), "loss/prediction": 1.0, "loss/copy_last": 2.0} for step in range(5000)]
    chart = loss_chart(losses)
    assert chart is not None and all(line.path.count("L") == 239 for line in chart.lines)
    assert loss_chart([]) is None and loss_chart([{"step": 1.0, "loss": 2.0}]) is None


def test_the_spread_of_latents_is_relative_to_the_first() -> None:
    logged = [{"step": 1.0, "latents/deviation": 0.5, "latents/rank": 40.0, "latents/copy_last": 0.2}]
    assert latents_chart([{"step": 1.0, "loss/prediction": 1.0}]) is None
    logged += [{"step": 2.0}, {"step": 50.0, "latents/deviation": 0.25, "latents/rank": 10.0, "latents/copy_last": 0.3}]
    chart = latents_chart(logged)
    assert chart is not None and [line.name for line in chart.lines] == ["deviation", "rank", "copying"]
    assert "deviation 0.500, rank 0.250, copying 1.500" in chart.description and chart.zero is None
    page = render(example_report(losses=[{**line, "loss/prediction": 1.0} for line in logged]))
    assert "Latents of the encoder" in page and "Latents of the encoder" not in render(example_report())


def test_validation_skills_have_the_colours_of_their_baselines_and_one_line_each() -> None:
    logged = [
        {"step": 1.0, "loss/prediction": 1.0},
        {"step": 5.0, "validation/linear": -3.0, "validation/copy_last": 0.25, "validation/copy_last/1": 0.9},
        {"step": 10.0, "validation/linear": 0.125, "validation/copy_last": 0.5, "validation/copy_last/1": 0.9},
    ]
    chart = validation_chart(logged, ["copy_last", "ridge", "linear"])
    assert chart is not None
    assert [(line.key, line.name) for line in chart.lines] == [("1", "copy last"), ("3", "linear")]
    assert chart.lines[0].path == "M50,29.167L100,8.333" and chart.y_ticks[0].text == "\N{MINUS SIGN}0.6"
    assert "copy last 0.500, linear 0.125" in chart.description
    assert validation_chart(logged[:1], ["copy_last"]) is None
    single = validation_chart(logged[2:], ["copy_last"])
    assert single is not None and single.lines[0].marks, "a line of one point would not be seen"
    assert (unnamed := validation_chart(logged, [])) and [line.key for line in unnamed.lines] == ["1", "2"]


def test_the_basis_is_the_principal_components_of_all_targets() -> None:
    scale = torch.tensor([5.0, 3.0, 2.0] + [0.1] * (CHANNELS - 3))
    targets = torch.randn(6, 2000, CHANNELS, generator=torch.Generator().manual_seed(1)) * scale + 1
    moments = TargetMoments(CHANNELS)
    for batch in targets:
        moments.add(batch)
    basis = moments.basis()
    components = torch.linalg.svd(targets.flatten(0, 1) - targets.flatten(0, 1).mean(0), full_matrices=False).Vh[:3]
    cosines = torch.cosine_similarity(basis.axes.T, components, dim=1).abs()
    assert cosines.min() > 0.999 and 0.99 < basis.explained < 1
    assert (basis.paint(basis.mean) == 128).all(), "the mean is grey"
    one_deviation = basis.paint(basis.mean + scale * torch.eye(CHANNELS)[0])
    assert one_deviation[0] == pytest.approx(255 * (np.tanh(0.5) + 1) / 2, abs=4)
    with pytest.raises(DataError, match="no targets"):
        TargetMoments(CHANNELS).basis()


def picture(uri: str) -> np.ndarray[Any, Any]:
    head, data = uri.split(",", 1)
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_sheets_hold_every_step_in_order() -> None:
    clip = rolled_clips(1)[0]
    moments = TargetMoments(CHANNELS)
    moments.add(clip.target)
    basis = moments.basis()
    content = player_content([clip], basis)
    truth = torch.cat([clip.context, clip.target])
    sheet = picture(content["clips"][0]["sheets"]["truth"])
    assert sheet.shape == (GRID, 8 * GRID, 3)
    for step in range(CONTEXT + HORIZONS):
        np.testing.assert_array_equal(sheet[:, step * GRID : (step + 1) * GRID], basis.paint(truth[step]))
    expected = (clip.prediction - clip.target).square().mean((1, 2, 3)).tolist()
    assert content["clips"][0]["error"] == pytest.approx(expected, abs=1e-4)
    assert content["clips"][0]["frames"]["size"] == [24, 24]
    assert content["clips"][0]["seconds"][CONTEXT - 1] == 0


def test_frames_get_smaller_where_there_are_many() -> None:
    assert frame_side(8 * 16) == 224 and frame_side(8 * 128) < 100 and frame_side(10**6) == 48
    clip = dataclasses.replace(rolled_clips(1)[0], frames=np.zeros((8, 1080, 1920, 3), dtype=np.uint8))
    moments = TargetMoments(CHANNELS)
    moments.add(clip.target)
    assert player_content([clip], moments.basis())["clips"][0]["frames"]["size"] == [224, 126]


def test_a_page_stays_small_whatever_the_video(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (CONTEXT + HORIZONS, 320, 320, 3), dtype=np.uint8)
    clips = [dataclasses.replace(clip, frames=noise) for clip in rolled_clips(8)]
    moments = TargetMoments(CHANNELS)
    moments.add(clips[0].target)
    assert len(render(example_report(player=player_content(clips, moments.basis())))) < 5_000_000
    assert clips_that_fit((16, 16, 16, 1024)) == 8 and clips_that_fit((64, 32, 32, 768)) == 1


def test_the_seen_region_is_what_a_processor_keeps() -> None:
    crop = {"do_center_crop": True, "crop_size": {"height": 256, "width": 256}, "size": {"shortest_edge": 292}}
    assert seen_region(crop, 292, 400) == (72, 18, 328, 274)
    assert seen_region({"size": {"height": 224, "width": 224}}, 100, 200) == (0, 0, 200, 100)


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(example_report(), path)
    page = path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert not re.findall(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"data:[^\"]*|^\s*//.*$", "", page, flags=re.M))
    assert page == render(example_report()), "the same run gives the same bytes"


def test_what_comes_from_outside_is_escaped() -> None:
    evil = "</script><script>alert(1)</script>"
    content = player()
    content["clips"][0]["label"] = evil
    page = render(example_report(name=evil, config=evil, provenance={evil: evil}, notes=[evil], player=content))
    assert evil not in page and "moov atom &lt;not&gt; found" in page
    assert page.count("<script") == 2


def test_failures_are_counted_by_kind_and_cut_short() -> None:
    page = render(example_report(cache=cache_summary(failures=250)))
    assert "250 \N{MULTIPLICATION SIGN} decode: cut off" in page and "And 50 more" in page
    assert page.count("<code>bad-0</code>") == 200
    assert "Nothing failed." in render(example_report(cache=cache_summary(failures=0)))
