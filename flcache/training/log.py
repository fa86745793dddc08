"""Metrics of a run: one JSON line a logged step, and the same scalars for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from flcache.errors import TrainingError


class MetricsLog:
    """Appends to `metrics.jsonl` and to TensorBoard's event files in `directory`.

    Lines of steps after `start_step` are dropped: the run that resumes there writes them again.
    """

    def __init__(self, directory: Path, *, start_step: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= start_step] if start_step else []
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start_step + 1 if start_step else None)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._writer.close()


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
