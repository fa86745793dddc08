"""A loss that is not finite stops a run and names its clips, and no training step waits for its device in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flcache.batch import ChannelStatistics, LatentBatch
from flcache.errors import TrainingError
from flcache.predictor import PREDICTORS, PredictorOptions, build_predictor
from flcache.training import (
    Objective,
    Run,
    RunRecord,
    TrainingOptions,
    WorldModel,
    build_optimiser,
    finite,
    learning_rate_schedule,
)
from flcache.training.finite import LossCheck
from flcache.training.objective import prediction_loss

SHAPE = (4, 4, 4, 8)
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "item")


class Waits(TorchDispatchMode):
    """Counts the operations that stall a GPU: they bring a value to the CPU, or have a size that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        name = operator.name().removeprefix("aten::").partition(".")[0]
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in given[1]
        )
        if masks or any(name.strip("_").startswith(waiting.strip("_")) for waiting in WAITING):
            self.seen[name] += 1
        return operator(*given, **(named or {}))


def test_waits_are_counted() -> None:
    numbers = torch.arange(3.0)
    with Waits() as waits:
        (
            float(numbers[1]),
            bool(numbers[1] > 0),
            numbers[numbers > 1],
            torch.nonzero(numbers),
            torch.equal(numbers, numbers),
        )
    assert sum(waits.seen.values()) >= 5, waits.seen


class Latents:
    """The same random latents in every step."""

    def __init__(self) -> None:
        self.batch = a_batch()

    def __iter__(self) -> Iterator[LatentBatch]:
        yield self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def a_batch() -> LatentBatch:
    latents = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(3, SHAPE[0], dtype=torch.bool)
    return LatentBatch(latents, latents, torch.arange(4.0).expand(3, 4), valid, ("a", "b", "c"), 2)


def a_run(kind: str, folder: Path, options: TrainingOptions) -> Run:
    sizes = {"depth": 2, "width": 24, "heads": 2, "mlp_width": 24, "merge": 2}
    predictor = build_predictor(PredictorOptions(kind, "tiny", sizes), SHAPE)
    statistics = ChannelStatistics(torch.zeros(SHAPE[-1]), torch.ones(SHAPE[-1]))
    objective = Objective("l2" if kind == "flow_matching" else "l1", rollout_steps=2, horizon_weights=(2.0, 1.0))
    model = WorldModel(predictor, statistics, boundaries=[1, 2], objective=objective)
    optimiser = build_optimiser({"model": model}, options)
    schedule, record = learning_rate_schedule(optimiser, options), RunRecord(0, "", SHAPE, False)
    accelerator = Accelerator(cpu=True)
    return Run(accelerator, model, Latents(), optimiser, schedule, directory=folder, record=record, config="")


@pytest.mark.parametrize("kind", list(PREDICTORS))
def test_no_step_between_logs_waits_for_its_device(kind: str, tmp_path: Path) -> None:
    options = TrainingOptions(steps=6, warmup_steps=2, log_every=100, checkpoint_every=100)
    waited: list[int] = []
    with Waits() as waits:
        a_run(kind, tmp_path, options).fit(options, lambda step, metrics: waited.append(sum(waits.seen.values())))
    assert len(waited) == 6
    assert waited[1:5] == waited[:1] * 4, waits.seen
    assert waited[5] > waited[4], "the last step is logged, which must be seen"


def test_a_loss_that_is_not_finite_is_blamed_on_its_clips() -> None:
    batch, check = a_batch(), LossCheck()
    check.add(torch.tensor(1.0), torch.ones(3), batch.ids)
    latents = batch.latents.clone()
    latents[1, 3] = torch.nan
    spoiled = LatentBatch(latents, latents, batch.times, batch.valid, batch.ids, 2)
    model = build_predictor(PredictorOptions("parallel", "tiny", {"width": 24, "heads": 2, "merge": 2}), SHAPE)
    result = prediction_loss(model.forecasts(spoiled, [2], 1), spoiled, [2], Objective())
    with pytest.raises(TrainingError, match="the loss is nan: not finite for clips b;"):
        check.add(result.loss, result.per_clip, batch.ids)


class LateEvent:
    """A copy from a GPU that has arrived once it is waited for."""

    arrived = False

    def query(self) -> bool:
        return self.arrived

    def synchronize(self) -> None:
        self.arrived = True


def test_losses_that_come_late_are_looked_at_a_batch_later_and_before_anything_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def send_back(values: Tensor, ids: tuple[str, ...]) -> Any:
        return finite._Losses(values, LateEvent(), ids)

    monkeypatch.setattr(finite, "_send_back", send_back)
    sound, spoiled = torch.ones(1), torch.tensor([torch.inf])
    check = LossCheck()
    check.add(torch.tensor(1.0), sound, ("a",))
    check.add(torch.tensor(torch.inf), spoiled, ("b",))
    with pytest.raises(TrainingError, match="the loss is inf: not finite for clips b;"):
        check.add(torch.tensor(torch.nan), torch.tensor([torch.nan]), ("c",))
    check = LossCheck()
    check.add(torch.tensor(torch.nan), torch.tensor([torch.nan]), ("d",))
    with pytest.raises(TrainingError, match="not finite for clips d;"):
        check.settle()


def test_a_spoiled_run_writes_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the loss is not known before the update is applied, as on a GPU."""
    monkeypatch.setattr(finite, "_send_back", lambda values, ids: finite._Losses(values, LateEvent(), ids))
    options = TrainingOptions(steps=3, warmup_steps=0, log_every=100, checkpoint_every=2)
    run = a_run("parallel", tmp_path, options)
    source = run.source
    assert isinstance(source, Latents)

    def spoil(step: int, metrics: dict[str, float]) -> None:
        source.batch.latents[2] = torch.nan

    with pytest.raises(TrainingError, match="not finite for clips c;"):
        run.fit(options, spoil)
    assert run.step == 2 and not list(run.checkpoints.glob("*"))
