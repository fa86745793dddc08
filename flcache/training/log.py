"""Metrics of a run: one JSON line a logged step, and the same scalars for trackers such as TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from torch import Tensor

from flcache.errors import ConfigError, TrainingError
from flcache.sealed import one_line

TENSORBOARD = "tensorboard"
DVCLIVE = "dvclive"
"""Takes `/` in a name for a folder: `loss` and `loss/copy_last` cannot both be there."""


class MetricsLog:
    """Appends to `metrics.jsonl` in `directory`, and gives the same to `trackers`, which are told the `config`.

    Lines of steps after `start_step` are dropped: the run that resumes there writes them again. To trackers other than
    TensorBoard a resumed run is a new one. Make it on the main process alone.
    Raises TrainingError for a tracker that does not start.
    """

    def __init__(
        self, directory: Path, *, start_step: int = 0, trackers: Sequence[str] = (TENSORBOARD,), config: str = ""
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= start_step] if start_step else []
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._trackers: list[Any] = []
        with ExitStack() as stack:
            self._file = stack.enter_context(self.path.open("a", encoding="utf-8"))
            for name in trackers:
                self._trackers.append(_started(name, directory, start_step, config))
                stack.callback(self._trackers[-1].finish)
            self._open = stack.pop_all()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(_without_folders(metrics) if tracker.name == DVCLIVE else metrics, step=step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker that Accelerate does not know, or whose package is not installed."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f'training.trackers: unknown "{name}"; choose from {", ".join(LOGGER_TYPE_TO_CLASS)}')
        if name in LoggerType and LoggerType(name) not in get_available_trackers():
            raise ConfigError(f'training.trackers: {name} is not installed; run "pip install {name}"')


def _started(name: str, directory: Path, start_step: int, config: str) -> Any:
    """Accelerate's tracker `name`, started; what it writes on this machine is in `directory` where it takes one."""
    kind = LOGGER_TYPE_TO_CLASS[name]
    settings: dict[str, dict[str, Any]] = {
        TENSORBOARD: {"purge_step": start_step + 1 if start_step else None},
        "wandb": {"dir": str(directory), "name": directory.name},
    }
    where = (TENSORBOARD, str(directory)) if kind.requires_logging_directory else ("flcache",)
    try:
        tracker = kind(*where, **settings.get(name, {}))
        tracker.start()
        if name != TENSORBOARD:  # whose hyperparameters would be a run of their own
            tracker.store_init_configuration(yaml.safe_load(config) or {})
    except Exception as error:  # a tracker raises what it likes, such as of an account that is not logged in
        raise TrainingError(f"training.trackers: {name} does not start: {one_line(error)}") from error
    return tracker


def _without_folders(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.replace("/", "."): value for name, value in metrics.items()}


class Means:
    """Means of metrics since they were last taken, each over how often it was added."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes, each a float; every process must have added the same names."""
        means = [float(total) / self._counts[name] for name, total in self._sums.items()]
        values = accelerator.reduce(torch.tensor(means, device=accelerator.device), reduction="mean").tolist()
        taken = dict(zip(self._sums, values, strict=True))
        self._sums, self._counts = {}, {}
        return taken


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`; a last line cut short by a kill is left out. Raises TrainingError."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        metrics = [{str(name): float(value) for name, value in json.loads(line).items()} for line in lines]
        return [{**line, "step": int(line["step"])} for line in metrics]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise TrainingError(f"{path}: a line is no metrics of a run: {error}; move the file away") from error
