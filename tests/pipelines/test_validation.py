"""Validation while training: it finds what `flcache evaluate` finds, on the same clips, and disturbs nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from forked import command_line, run_together
from safetensors.torch import load_file
from small_run import flcache

from flcache.config import load_config
from flcache.errors import DataError, TrainingError
from flcache.pipelines import evaluate, export, report, train
from flcache.pipelines.setup.source import Reading, open_source
from flcache.training import read_metrics

SOURCES = {
    "cache": ["training.source=cache"],
    "frozen": ["training.source=videos"],
    "trained": ["training.source=videos", "encoder_trainable=true"],
    "averaged": ["training.ema=0.5"],
    "flow": ["predictor.kind=flow_matching", "training.loss=l2", "evaluation.samples=2"],
}
VALIDATING = ["training.validate_every=2", "evaluation.batch_size=4"]


def skills(directory: Path) -> dict[int, dict[str, float]]:
    """What validations found, by step."""
    lines = read_metrics(directory / "metrics.jsonl")
    found = {int(line["step"]): {k: v for k, v in line.items() if k.startswith("validation/")} for line in lines}
    return {step: metrics for step, metrics in found.items() if metrics}


def losses(directory: Path) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(directory / "metrics.jsonl")]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "checkpoints" / "step-00000006" / "model.safetensors")


@pytest.mark.parametrize("source", SOURCES)
def test_it_finds_what_evaluate_finds_and_changes_nothing(
    encoded: Path, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses and weights have the bits of a run that does not validate."""
    for name, settings in (("plain", []), ("validated", VALIDATING)):
        train.run(load_config(encoded, [*SOURCES[source], *settings, f"training.dir={tmp_path / name}"]))
    assert losses(tmp_path / "validated") == losses(tmp_path / "plain")
    plain, validated = weights(tmp_path / "plain"), weights(tmp_path / "validated")
    assert all(torch.equal(tensor, validated[name]) for name, tensor in plain.items())
    found = skills(tmp_path / "validated")
    assert list(found) == [2, 4, 6] and skills(tmp_path / "plain") == {}
    capsys.readouterr()
    evaluate.run(
        load_config(encoded, [*SOURCES[source], *VALIDATING, f"training.dir={tmp_path / 'validated'}"]), as_json=True
    )
    rows = json.loads(capsys.readouterr().out)["horizons"]
    fitted = {"dataset_mean", "ridge"} if source in ("cache", "averaged", "flow") else set()
    for baseline in {"copy_last", "mean_of_context", "linear"} | fitted:
        expected = {f"validation/{baseline}/{row['horizon']}": row["skill"][baseline] for row in rows}
        assert {name: found[6][name] for name in expected} == pytest.approx(expected, rel=1e-6), baseline
        assert found[6][f"validation/{baseline}"] == pytest.approx(sum(expected.values()) / len(rows))
    assert ("validation/ridge" in found[6]) == bool(fitted)


@pytest.mark.parametrize("learning_rate", [0.003, 0.1], ids=["rising", "falling"])
def test_the_best_checkpoint_is_kept_also_when_resumed(
    encoded: Path, tmp_path: Path, learning_rate: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last validation is the best one, or it is worse than one before the interruption."""
    common = ["training.validate_every=2", "training.keep_checkpoints=1", f"training.learning_rate={learning_rate}"]
    common += ["training.min_learning_rate_fraction=1.0"]  # or the rate would follow the number of steps
    for name, parts in (("whole", (6,)), ("parts", (4, 6))):
        for steps in parts:
            settings = [*common, f"training.steps={steps}", f"training.dir={tmp_path / name}"]
            train.run(load_config(encoded, settings), resume=steps != parts[0])
    found = skills(tmp_path / "whole")
    assert skills(tmp_path / "parts") == found and list(found) == [2, 4, 6]
    scores = {step: metrics["validation/copy_last"] for step, metrics in found.items()}
    best = max(scores, key=scores.__getitem__)
    assert (best == 6) == (learning_rate < 0.1)
    capsys.readouterr()
    config = load_config(encoded, [*common, f"training.dir={tmp_path / 'parts'}"])
    evaluate.run(config, Path("best"), as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == best
    mean = sum(row["skill"]["copy_last"] for row in result["horizons"]) / 2
    assert mean == pytest.approx(scores[best], rel=1e-6)
    files = [load_file(tmp_path / name / "checkpoints" / "best" / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())
    kept = sorted(path.name for path in (tmp_path / "parts" / "checkpoints").iterdir())
    assert kept == ["best", "step-00000006"]
    report.run(tmp_path / "parts", checkpoint=Path("best"))
    export.run(tmp_path / "parts" / "checkpoints" / "best", tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "predictor" / "predictor.json").read_text())["step"] == best
    assert f"{best} steps of 4 clips" in (tmp_path / "parts" / "report.html").read_text(encoding="utf-8")


def test_a_run_without_validations_has_no_best(encoded: Path, trained: Path) -> None:
    with pytest.raises(TrainingError, match=r"no best checkpoint; .*training\.validate_every"):
        evaluate.run(load_config(encoded, [f"training.dir={trained}"]), Path("best"))


@pytest.mark.parametrize("source", ["cache", "frozen"])
def test_the_sample_is_the_first_clips_of_the_split_every_time(encoded: Path, source: str) -> None:
    config = load_config(encoded, SOURCES[source])

    def read(most: int | None) -> list[list[str]]:
        with open_source(config, Reading("val", 3, shuffle=False, most=most), device="cpu") as found:
            return [[clip for batch in found.batches for clip in batch.ids] for _ in range(2)]

    whole, again = read(None)
    assert len(whole) == 6 and again == whole
    assert read(4) == [whole[:4], whole[:4]]
    assert read(64) == [whole, whole]


def test_validation_clips_that_cannot_be_decoded_are_left_out_and_stop_no_run(
    encoded: Path, videos: Path, tmp_path: Path
) -> None:
    """Two of six are more than `encode.max_failed_fraction`, but six are too few to judge a split by."""
    shutil.copytree(videos, tmp_path / "damaged")
    for path in sorted((tmp_path / "damaged").rglob("v0*.mp4"))[:2]:
        path.write_bytes(b"not a video")
    settings = ["training.source=videos", "training.steps=2", *VALIDATING, f"training.dir={tmp_path / 'some'}"]
    train.run(load_config(encoded, [*settings, f"dataset.root={tmp_path / 'damaged'}"]))
    train.run(load_config(encoded, [*settings, f"training.dir={tmp_path / 'all'}"]))
    some, whole = skills(tmp_path / "some")[2], skills(tmp_path / "all")[2]
    assert some.keys() == whole.keys() and some != whole
    for path in (tmp_path / "damaged").rglob("v0*.mp4"):
        path.write_bytes(b"not a video")
    with pytest.raises(DataError, match="no clips to validate on"):
        train.run(
            load_config(encoded, [*settings, f"dataset.root={tmp_path / 'damaged'}", f"training.dir={tmp_path / 'no'}"])
        )


def test_two_processes_find_what_one_finds(encoded: Path, tmp_path: Path) -> None:
    """6 clips in batches of 4: the second process validates on fewer than the first."""
    settings = [*VALIDATING, "training.steps=4"]
    train.run(load_config(encoded, [*settings, "training.batch_size=8", f"training.dir={tmp_path / 'one'}"]))
    stage = ("train", "--config", encoded, *settings, f"training.dir={tmp_path / 'two'}")
    results = run_together(command_line, stage, stage)
    assert [result.returncode for result in results] == [0, 0], "".join(result.stderr for result in results)
    one, two = skills(tmp_path / "one"), skills(tmp_path / "two")
    assert one.keys() == two.keys() == {2, 4}
    assert two[4] == pytest.approx(one[4], abs=1e-4)


def test_progress_says_the_skill_over_copying_and_over_the_strongest_baseline(encoded: Path, tmp_path: Path) -> None:
    result = flcache("train", "--config", encoded, *VALIDATING, f"training.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    found = skills(tmp_path)[6]
    assert f"validation skill {found['validation/copy_last']:.3f} over copy last" in result.stderr
    least = min((value, name) for name, value in found.items() if name.count("/") == 1)
    assert f"{least[0]:.3f} over {least[1].split('/')[1].replace('_', ' ')}" in result.stderr
