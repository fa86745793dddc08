"""The training loop: optimiser steps, logs and checkpoints.

Accelerate does devices, precision, data parallelism and accumulation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, InitVar, asdict, astuple, dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flcache.batch import LatentBatch
from flcache.errors import FlcacheError, TrainingError
from flcache.training.checkpoint import (
    CONFIG,
    STATE,
    RunRecord,
    check_same_run,
    latest_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from flcache.training.collapse import LatentHealth, check_collapse, latent_health
from flcache.training.draws import drawn_order, seed_noise, slices_seed
from flcache.training.finite import LossCheck
from flcache.training.log import Means, MetricsLog
from flcache.training.options import TrainingOptions
from flcache.training.sharding import prepared, whole, whole_weights
from flcache.training.state import Position, Trained, read_state, restore, write_state
from flcache.training.stopping import Asked, Stopping, never
from flcache.training.validation import Validate
from flcache.training.world_model import Batch, WorldModel

OnStep = Callable[[int, dict[str, float]], None]
"""Called after every optimiser step with its number and, on logged steps, the metrics."""
WATCH_EVERY = 50
"""Optimiser steps between two checks of a trainable encoder's latents for collapse."""


class Source(Protocol):
    """Iterating yields the rest of an epoch: `flcache.cache.LatentLoader` and `flcache.training.VideoSource`."""

    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(eq=False)
class Run:
    """A training run: model, source, optimiser and schedule, and the folder they are kept in.

    `step` counts optimiser steps. Two runs of one configuration, seed and machine are equal, and so is a run that was
    stopped at a checkpoint and resumed.
    """

    accelerator: Accelerator
    model: WorldModel
    source: Source
    optimiser: InitVar[Optimizer]
    schedule: LRScheduler
    _: KW_ONLY
    directory: Path
    record: RunRecord
    config: str
    """Text of the `config.yaml` in checkpoints."""
    seed: int = 0

    def __post_init__(self, optimiser: Optimizer) -> None:
        self.step = self._logged_step = 0
        self._means, self._losses = Means(), LossCheck()
        self._health: LatentHealth | None = None
        self._best: float | None = None
        self._wrapped, self._optimiser = prepared(self.accelerator, self.model, optimiser)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def resume(self, folder: Path | None = None) -> None:
        """Continue from the checkpoint in `folder`; None takes the newest.

        Raises TrainingError where there is none, or it is damaged or of another run; this run is then unchanged.
        """
        checkpoint = open_checkpoint(folder or latest_checkpoint(self.checkpoints))
        check_same_run(checkpoint.record, self.record, checkpoint.folder)
        saved = read_state(checkpoint, self._trained())
        with checkpoint.reading(STATE):
            try:
                self.source.load_state_dict(saved.position.source)
            except FlcacheError as error:
                raise TrainingError(f"{checkpoint.folder}: {error}") from error
        restore(saved, self._trained())
        self.step, self._health, self._best = saved.position.step, saved.position.health, saved.position.best

    def save(self, keep: int, best: bool = False) -> Path:
        """Write a checkpoint of the present step, as the `best` or as the newest, and keep the newest `keep`.

        Raises TrainingError, and writes none, if a loss was not finite.
        """
        self._losses.settle()
        record = replace(self.record, step=self.step)
        return save_checkpoint(self.accelerator, self.checkpoints, record, self._write, keep=keep, best=best)

    def _write(self, folder: Path) -> None:
        position = Position(self.step, self.source.state_dict(), self._health, self._best)
        write_state(folder, self._trained(), position, process=self.accelerator.process_index)
        if self.accelerator.is_main_process:
            (folder / CONFIG).write_text(self.config, encoding="utf-8")

    def _trained(self) -> Trained:
        return Trained(self.model, self._optimiser, self.schedule, self.accelerator.scaler)

    def fit(
        self,
        options: TrainingOptions,
        on_step: OnStep,
        asked_to_stop: Asked = never,
        validate: Validate | None = None,
    ) -> int:
        """Train to `options.steps`, or until `asked_to_stop` gives another number than 0 on any process, which is
        returned once a checkpoint has been written. Without `validate` nothing is validated.

        Raises TrainingError on a loss that is not finite and on collapsing latents.
        """
        batches = chain.from_iterable(repeat(self.source))  # epoch after epoch
        self._logged_step = self.step
        stopping, stopped = Stopping(asked_to_stop, self.accelerator.num_processes), 0
        self.model.train()
        with self._log(options.trackers) as log:
            while self.step < options.steps and not stopped:
                self._optimise(batches, options)
                values: dict[str, float] = {}
                if options.logs_at(self.step):
                    values = self._logged()
                    if validate and options.validates_at(self.step):
                        values |= self._validated(validate, options.keep_checkpoints)
                    if log:
                        log.write(self.step, values)
                on_step(self.step, values)
                done = self.step == options.steps
                stopped = 0 if done else stopping.after_step()
                if done or stopped or self.step % options.checkpoint_every == 0:
                    self.save(options.keep_checkpoints)
        stopping.close()
        return stopped

    def _optimise(self, batches: Iterator[Batch], options: TrainingOptions) -> None:
        """One optimiser step over `options.accumulate` batches, and its metrics."""
        started, waited, clips = time.perf_counter(), 0.0, 0
        for number in range(options.accumulate):
            asked = time.perf_counter()
            batch = next(batches).to(self.accelerator.device)
            waited += time.perf_counter() - asked
            clips += len(batch)
            with self.accelerator.accumulate(self._wrapped):
                self._learn(batch, self.step * options.accumulate + number)
                norm: Tensor | float = 0.0
                if self.accelerator.sync_gradients:
                    norm = whole(self.accelerator.clip_grad_norm_(self.model.parameters(), options.clip_norm))
                self._optimiser.step()
                self._optimiser.zero_grad()
        self._means.add({"gradient_norm": norm, "learning_rate": self.schedule.get_last_lr()[0]})
        self.schedule.step()
        self.step += 1
        self.model.update_target(options.ema_decay_at(self.step))
        if options.ema is not None:
            self.model.update_average(options.ema, self.step)
        self._watch(batch)
        elapsed = time.perf_counter() - started
        self._means.add({"clips_per_s": clips, "data_wait_fraction": waited, "step_s": elapsed})

    def _learn(self, batch: Batch, draw: int) -> None:
        """Gradients of one batch, each process weighted by its number of clips."""
        seed_noise(seed=self.seed, draw=draw, process=self.accelerator.process_index)
        order = drawn_order(self.model.boundaries, seed=self.seed, draw=draw)
        with self.accelerator.autocast():  # Accelerate's wrapper for FSDP2 does not
            result = self._wrapped(batch, order, slices_seed(seed=self.seed, draw=draw))
        if len(batch):
            self._losses.add(result.loss, result.per_clip, batch.ids)
        share = self._share(batch)
        self.accelerator.backward(result.loss * share)
        metrics = {"loss": result.loss.detach(), **result.metrics}
        self._means.add({name: value * share for name, value in metrics.items()})

    def _share(self, batch: Batch) -> Tensor | float:
        """The number of clips in `batch` relative to the mean over processes, which average their gradients."""
        if self.accelerator.num_processes == 1:
            return 1.0
        clips = torch.full((), float(len(batch)), device=self.accelerator.device)
        mean: Tensor = self.accelerator.reduce(clips, reduction="mean")
        return clips / mean.clamp(min=1 / self.accelerator.num_processes)

    def _watch(self, batch: Batch) -> None:
        """Every `WATCH_EVERY` steps, raise TrainingError if the latents of a trainable encoder have collapsed."""
        if isinstance(batch, LatentBatch) or self.model.encoder is None:
            return
        if self.step != 1 and self.step % WATCH_EVERY:
            return
        self._losses.settle()
        self.model.eval()  # dropout would pass for spread
        with torch.no_grad(), self.accelerator.autocast(), whole_weights(self.accelerator, self.model):
            found = latent_health(self.model.to_first_latents(batch))
        self.model.train()
        values = torch.tensor([*astuple(found), 1.0], device=self.accelerator.device) * self._share(batch)
        *means, share = self.accelerator.reduce(values, reduction="mean").tolist()
        if share == 0:  # no process has a clip
            return
        health = LatentHealth(*means)
        self._health = self._health or health
        self._means.add({f"latents/{name}": value for name, value in asdict(health).items()})
        check_collapse(health, self._health, step=self.step)

    def _logged(self) -> dict[str, float]:
        """Metrics of the steps since the last logged one; no process waits for its device between two such."""
        asked = time.perf_counter()
        self._losses.settle()
        metrics = self._means.take(self.accelerator)
        behind_s = time.perf_counter() - asked  # what a GPU still had to do
        step_s = metrics.pop("step_s") + behind_s / (self.step - self._logged_step)
        self._logged_step = self.step
        metrics["clips_per_s"] *= self.accelerator.num_processes / step_s
        metrics["data_wait_fraction"] /= step_s
        return metrics

    def _validated(self, validate: Validate, keep: int) -> dict[str, float]:
        """Metrics of a validation, after which the best checkpoint is the best.

        What steps draw at random follows from seed and step, so no step changes.
        """
        self.model.eval()
        with whole_weights(self.accelerator, self.model):
            found = validate()
        self.model.train()
        if math.isfinite(found.score) and (self._best is None or found.score > self._best):
            self._best = found.score
            self.save(keep, best=True)
        return found.metrics()

    def _log(self, trackers: Sequence[str]) -> AbstractContextManager[MetricsLog | None]:
        """The log on the main process, None on the others."""
        if not self.accelerator.is_main_process:
            return nullcontext()
        return MetricsLog(self.directory, start_step=self.step, trackers=trackers, config=self.config)
