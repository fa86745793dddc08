"""Checkpoints of both forms, whole, damaged and hostile: they resume to the same bits or end in one TrainingError.

The earlier form has no digests, so a change that leaves a file well-formed goes unnoticed in it; the same holds for
whoever changes a file and its digest. Such a checkpoint may resume to another state, but to one that trains.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from flcache.cache import LatentCache, LatentLoader
from flcache.errors import TrainingError
from flcache.predictor import PredictorOptions, build_predictor
from flcache.sealed import file_digest, sealed
from flcache.training import (
    Objective,
    Run,
    RunRecord,
    TrainingOptions,
    WorldModel,
    build_optimiser,
    latest_checkpoint,
    learning_rate_schedule,
    load_weights,
    open_checkpoint,
)
from flcache.training.state import _scaler

STORED = Path(__file__).parent.parent / "fixtures" / "b98e9e3"
STEP = "step-00000004"
OPTIONS = TrainingOptions(steps=2**62, checkpoint_every=2**62, log_every=1)
LOADED_BY_ACCELERATE = [
    "custom_checkpoint_0.pkl",
    "custom_checkpoint_1.pkl",
    "custom_checkpoint_2.pkl",
    "optimizer.bin",
    "scheduler.bin",
    "sampler.bin",
    "dl_state_dict.bin",
    "scaler.pt",
    "random_states_0.pkl",
    "pytorch_model.bin",
]
"""Files that `Accelerator.load_state` may unpickle."""
WRITTEN = ["model.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "run.json"]


class Enough(Exception):
    """Stops `Run.fit` after one step."""


def make_run(directory: Path) -> Run:
    """A run on the stored cache, of the shape that the stored checkpoint has."""
    torch.manual_seed(1)
    cache = LatentCache(STORED / "float16", "train")
    overrides = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "merge": 1}
    predictor = build_predictor(PredictorOptions(preset="tiny", overrides=overrides), cache.latent_shape)
    model = WorldModel(predictor, cache.statistics(), boundaries=[1, 2, 3], objective=Objective("l1", "raw", 1, (1.0,)))
    optimiser = build_optimiser({"predictor": predictor}, OPTIONS)
    return Run(
        Accelerator(cpu=True),
        model,
        LatentLoader(cache, batch_size=2, context_steps=2),
        optimiser,
        learning_rate_schedule(optimiser, TrainingOptions(steps=8, warmup_steps=2)),
        directory=directory,
        record=RunRecord(0, cache.fingerprint, cache.latent_shape, False),
        config="seed: 0\n",
    )


def train_one_step(run: Run) -> None:
    def stop(step: int, metrics: dict[str, float]) -> None:
        raise Enough

    with pytest.raises(Enough):
        run.fit(OPTIONS, stop)


def state_of(run: Run) -> bytes:
    """All that a run resumes to, in one comparable value."""
    optimiser = run._optimiser.state_dict()
    schedule = {name: value for name, value in run.schedule.state_dict().items() if name != "lr_lambdas"}
    stream = io.BytesIO()
    for tensor in run.model.state_dict().values():
        stream.write(tensor.numpy().tobytes())
    for index, moments in sorted(optimiser["state"].items()):
        stream.write(f"{index}".encode())
        for kind in ("exp_avg", "exp_avg_sq", "step"):
            stream.write(moments[kind].numpy().tobytes())
    plain = (run.step, run.source.state_dict(), run._health, schedule, optimiser["param_groups"])
    stream.write(repr(plain).encode())
    return stream.getvalue()


def spoil(run: Run) -> None:
    """Make `run` unlike any checkpoint, so that an equal state can only come from one."""
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()
    run.step, run._health = 0, None
    run.source.load_state_dict(run.source.state_dict() | {"epoch": 7, "samples": 0, "seed": 5})


@pytest.fixture(params=["new", "earlier"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """A run whose folder has one checkpoint of step 4, in the form that is the parameter."""
    shutil.copytree(STORED / "training" / "checkpoints", tmp_path / "checkpoints")
    made = make_run(tmp_path)
    made.resume()
    if request.param == "new":
        made.save(1)
        assert sorted(path.name for path in checkpoint_of(made).iterdir()) == sorted(WRITTEN)
    return made


def checkpoint_of(run: Run) -> Path:
    return run.checkpoints / STEP


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def put_back(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in contents(folder).items():
        if files.get(name) != content:
            (folder / name).unlink()
    for name in files.keys() - contents(folder).keys():
        (folder / name).write_bytes(files[name])


def seal_anew(folder: Path) -> None:
    """What someone does who changes files on purpose: digests are no signatures."""
    path = folder / "run.json"
    content = json.loads(path.read_bytes())
    del content["xxh3_64"]
    content["files"] = {
        file.name: file_digest(file) for file in folder.iterdir() if file.name not in ("run.json", "config.yaml")
    }
    path.write_text(sealed(content), encoding="utf-8")


def test_both_forms_resume_to_the_same_state(tmp_path: Path) -> None:
    shutil.copytree(STORED / "training" / "checkpoints", tmp_path / "checkpoints")
    states = []
    for _ in range(2):
        run = make_run(tmp_path)
        spoil(run)
        run.resume()
        states.append(state_of(run))
        run.save(1)
    assert states[0] == states[1] and run.step == 4


def test_parameters_that_had_no_gradient_yet_resume_without_moments(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.save(1)
    run.resume()
    assert run._optimiser.state_dict()["state"] == {}
    train_one_step(run)


class Touch:
    """Unpickled, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def as_pickle(made: Path) -> bytes:
    return pickle.dumps({"state": {}, "param_groups": [], "step": 4, "random_state": Touch(made)})


def as_torch_file(made: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"state": {}, "param_groups": [], "step": 4, "random_state": Touch(made)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("payload", [as_pickle, as_torch_file])
def test_a_hostile_file_of_any_name_runs_nothing(run: Run, tmp_path: Path, payload: Callable[[Path], bytes]) -> None:
    made, folder = tmp_path / "made", checkpoint_of(run)
    files = contents(folder)
    for name in (*LOADED_BY_ACCELERATE, *WRITTEN):
        (folder / name).write_bytes(payload(made))
        if name == "pytorch_model.bin":
            (folder / "model.safetensors").unlink()
        if "state.json" in files and name != "run.json":
            seal_anew(folder)
        before, refused = contents(folder), False
        for use in (run.resume, lambda: load_weights(open_checkpoint(folder), run.model)):
            try:
                use()
            except TrainingError as error:
                refused = True
                assert "\n" not in str(error) and str(folder) in str(error)
        assert not made.exists(), name
        opened = {"pytorch_model.bin", *files, *(() if "state.json" in files else ("scaler.pt",))}
        assert refused == (name in opened - NEVER_OPENED), name
        assert contents(folder) == before
        put_back(folder, files)
    pickle.loads(as_pickle(made))
    assert made.exists()


NEVER_OPENED = {"config.yaml", "custom_checkpoint_0.pkl", "random_states_0.pkl"}
"""On resuming."""


def flip(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    return content[: chance.randrange(len(content))]


def delete(content: bytes, chance: random.Random, others: list[bytes]) -> None:
    return None


def empty(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    return b""


def noise(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    return chance.randbytes(chance.choice((1, 100, len(content))))


def other(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    return chance.choice(others)


def grow(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + chance.randbytes(chance.randrange(1, 50)) + content[at:]


ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    5,
    2**31,
    2**64,
    10**400,
    1e308,
    -0.5,
    float("nan"),
    "x",
    "",
    [],
    {},
    [1, 2],
]


def edit(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Another value, type or name somewhere in the JSON; a flip in other files."""
    try:
        found = json.loads(content)
    except ValueError:
        return flip(content, chance, others)
    at: Any = found
    while True:
        key = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], dict | list) or not at[key] or chance.random() < 0.2:
            break
        at = at[key]
    if isinstance(at, dict) and chance.random() < 0.2:
        at[chance.choice(("x", key + "x"))] = at.pop(key)
    else:
        at[key] = chance.choice([*ODD_VALUES, json.loads("[" * 500 + "]" * 500)])
    return json.dumps(found).encode()


KINDS = (flip, flip, edit, edit, cut, delete, empty, noise, other, grow)


@pytest.mark.parametrize(
    ("run", "sealed", "count"), [("new", False, 1000), ("new", True, 700), ("earlier", False, 300)], indirect=["run"]
)
def test_every_mutation_resumes_or_is_one_error(run: Run, sealed: bool, count: int, tmp_path: Path) -> None:
    folder, chance = checkpoint_of(run), random.Random(7)
    files, reference = contents(folder), state_of(run)
    names = [name for name in files if not (sealed and name == "run.json")]
    started, refused, other_states = time.monotonic(), 0, 0
    for number in range(count):
        name, kind = names[number % len(names)], chance.choice(KINDS)
        changed = kind(files[name], chance, [files[each] for each in files if each != name])
        (folder / name).unlink() if changed is None else (folder / name).write_bytes(changed)
        if sealed:
            seal_anew(folder)
        spoil(run)
        before, on_disk = state_of(run), contents(folder)
        try:
            run.resume()
        except TrainingError as error:
            refused += 1
            assert "\n" not in str(error) and STEP in str(error) and len(str(error)) < 1500, error
            assert state_of(run) == before
        else:
            if state_of(run) != reference:
                other_states += 1
                assert sealed or "state.json" not in files, (number, name, kind)
                try_a_step(run)
        assert contents(folder) == on_disk
        put_back(folder, files)
    print(f"{refused} of {count} refused, {other_states} other states, {time.monotonic() - started:.1f} s")
    assert refused > count // 3


def try_a_step(run: Run) -> None:
    """A state that someone made up trains, or says in one line that it does not."""
    try:
        train_one_step(run)
    except TrainingError as error:
        assert "\n" not in str(error)
    finally:
        shutil.rmtree(run.directory / "tensorboard", ignore_errors=True)
        (run.directory / "metrics.jsonl").unlink(missing_ok=True)


def test_a_checkpoint_without_its_record_is_damaged_and_not_absent(run: Run) -> None:
    (checkpoint_of(run) / "run.json").unlink()
    assert latest_checkpoint(run.checkpoints) == checkpoint_of(run)
    with pytest.raises(TrainingError, match=r"run\.json: damaged, or not of flcache: no such file; remove"):
        run.resume()


def test_a_pipe_or_a_folder_in_place_of_a_file_blocks_nothing(run: Run) -> None:
    folder = checkpoint_of(run)
    for name in contents(folder).keys() - NEVER_OPENED:
        (folder / name).rename(folder / "kept")
        os.mkfifo(folder / name)
        with pytest.raises(TrainingError, match=r"not a plain file|no such file"):
            run.resume()
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(TrainingError, match=r"not a plain file|no such file"):
            run.resume()
        (folder / name).rmdir()
        (folder / "kept").rename(folder / name)
    run.resume()


def test_a_flipped_byte_in_the_weights_is_noticed_by_their_readers(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run.save(1) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"model\.safetensors: damaged, or not of flcache: its bytes are not those"):
        load_weights(open_checkpoint(path.parent), run.model)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_run(tmp_path).save(1))
    with pytest.raises(TrainingError, match=r"its weights are not of the configured predictor, "):
        load_weights(checkpoint, nn.Linear(2, 2))


def test_the_loss_scale_of_float16_is_kept_and_checked() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    assert _scaler(json.loads(json.dumps(scaler.state_dict())), scaler) == scaler.state_dict()
    assert _scaler(None, scaler) is None and _scaler(scaler.state_dict(), None) is None
    with pytest.raises(ValueError, match="not a finite number"):
        _scaler(scaler.state_dict() | {"scale": "1"}, scaler)


def test_metrics_that_are_none_are_named(tmp_path: Path) -> None:
    from flcache.training import read_metrics

    for line in ("{", "[]", '{"loss": 1}', '{"step": "x"}', "[" * 100_000):
        (tmp_path / "metrics.jsonl").write_text(line + "\n", encoding="utf-8")
        with pytest.raises(TrainingError, match=r"metrics\.jsonl: a line is no metrics of a run"):
            read_metrics(tmp_path / "metrics.jsonl")
