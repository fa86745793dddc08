"""The folder of a checkpoint: written under a temporary name, renamed when whole, read without executing anything.

    checkpoints/step-00000300/
        model.safetensors       predictor and its average, channel statistics, and the encoders when they train
        optimizer.safetensors   the moments of every trained parameter
        state.json              step, position in the data, learning rates, loss scale, latents' spread at the start
        config.yaml             the configuration of the run; may be edited
        run.json                step, fingerprint, latent shape, whether the context leaked; size and digest of the rest

`checkpoints/best` is such a folder too: that of the validation with the most skill over copying the last step.

No file is unpickled, and a file that is not listed here is never opened. Every file but `config.yaml` is checked
against its digest in `run.json`, and `run.json` against its own, before use. `earlier.py` reads checkpoints from before
this format, which have pickles and no digests.

A killed run may leave a folder with a temporary name; it is never read, and the next save removes it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from flcache.errors import TrainingError
from flcache.sealed import OF_BAD_CONTENT, check_seal, file_digest, flush, one_line, plain_file, read_json, sealed

PREFIX = "step-"
TEMPORARY = "writing-"
BEST = "best"
MODEL, OPTIMISER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CONFIG, RUN = "config.yaml", "run.json"


@dataclass(frozen=True)
class RunRecord:
    """What a checkpoint records of its run."""

    step: int
    fingerprint: str
    latent_shape: tuple[int, int, int, int]
    """(T, H, W, D) of the clips it was trained on."""
    leak: bool


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk. Every method raises TrainingError for a file that is missing or damaged."""

    folder: Path
    record: RunRecord
    digests: Mapping[str, Any] | None
    """Size and digest of every file by its name; None in a checkpoint from before there were digests."""

    def json(self, name: str) -> dict[str, Any]:
        with self.reading(name):
            self._check(name)
            return read_json(self.folder / name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file, on the CPU."""
        with self.reading(name):
            self._check(name)
            return safetensors.torch.load_file(plain_file(self.folder / name))

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turns an error from the content of file `name` into a TrainingError that names the file."""
        try:
            yield
        except OF_BAD_CONTENT as error:
            raise TrainingError(
                f"{self.folder / name}: damaged, or not of flcache: {one_line(error)}; remove {self.folder} to go on "
                f'from the checkpoint before it, or start anew in another "training.dir"'
            ) from error

    def _check(self, name: str) -> None:
        if self.digests is not None and self.digests[name] != file_digest(self.folder / name):
            raise ValueError("its bytes are not those that were written")


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    record: RunRecord,
    write: Callable[[Path], None],
    *,
    keep: int,
    best: bool = False,
) -> Path:
    """Let `write` fill a new checkpoint below `folder`, the `best` one or the newest; keep the newest `keep`.

    Call it on every process.
    """
    final = folder / (BEST if best else f"{PREFIX}{record.step:08d}")
    temporary = folder / f"{TEMPORARY}{record.step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    write(temporary)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        digests = {path.name: file_digest(path) for path in sorted(temporary.iterdir()) if path.name != CONFIG}
        (temporary / RUN).write_text(sealed({**asdict(record), "files": digests}), encoding="utf-8")
        flush(temporary)
        if final.exists():
            final.rename(temporary.with_suffix(".old"))
        temporary.rename(final)
        _remove_old(folder, keep)
    accelerator.wait_for_everyone()
    return final


def latest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint below `folder`. Raises TrainingError where there is none."""
    found = _checkpoints(folder)
    if not found:
        raise TrainingError(f'{folder}: no checkpoint; run "flcache train" first, or name one with --checkpoint')
    return found[-1]


def chosen_checkpoint(folder: Path, chosen: Path | None) -> Path:
    """`chosen`, where `best` is the best below `folder`; None is the newest. Raises TrainingError without one."""
    if chosen is None:
        return latest_checkpoint(folder)
    if chosen != Path(BEST):
        return chosen
    if not (folder / BEST).is_dir():
        raise TrainingError(f"{folder}: no best checkpoint; a run keeps one if training.validate_every is set")
    return folder / BEST


def agreed_checkpoint(accelerator: Accelerator, folder: Path) -> Path | None:
    """The newest checkpoint below `folder`, None where there is none. Call it on every process.

    Raises TrainingError on all of them unless all find the same one: `folder` may be on a disk of one machine.
    """
    found = _checkpoints(folder)
    own = (found[-1].name, _digest_or_none(found[-1] / RUN)) if found else ("no checkpoint", None)
    every = gather_object([own]) if accelerator.num_processes > 1 else [own]
    for process, other in enumerate(every):
        if other != every[0]:
            same_name = "another " if other[0] == every[0][0] else ""
            raise TrainingError(
                f"{folder}: process 0 finds {every[0][0]}, process {process} {same_name}{other[0]}: all must continue "
                f'from one checkpoint; put "training.dir" where every machine reads it, or copy the folder of process 0'
            )
    return found[-1] if found else None


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`. Raises TrainingError where there is none, or its `run.json` is damaged."""
    with Checkpoint(folder, RunRecord(0, "", (0, 0, 0, 0), False), None).reading(RUN):
        content = read_json(folder / RUN)
        digests = None
        if "files" in content or "xxh3_64" in content:
            check_seal(content)
            digests = dict(content.pop("files"))
        return Checkpoint(folder, _record(content), digests)


def check_same_run(found: RunRecord, wanted: RunRecord, checkpoint: Path) -> None:
    """Raises TrainingError if `checkpoint` was trained on other latents than this run."""
    for name in ("fingerprint", "latent_shape"):
        before, now = getattr(found, name), getattr(wanted, name)
        if before != now:
            raise TrainingError(
                f"{checkpoint}: trained on other latents: {name} was {before}, is {now}; use the cache it was "
                f'trained on, or start anew in another "training.dir"'
            )


def whole_number(value: Any, least: int = 0, most: int = 2**63 - 1) -> int:
    """`value`, if it is an int from `least` to `most`. Raises ValueError."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{str(value)[:40]!r} is not a whole number from {least} to {most}")
    return value


def finite_number(value: Any) -> float:
    """`value`, if it is a finite number of at least 0. Raises ValueError."""
    if type(value) not in (int, float) or not 0 <= value <= 1e300:
        raise ValueError(f"{str(value)[:40]!r} is not a finite number of at least 0")
    return float(value)


def _record(content: dict[str, Any]) -> RunRecord:
    T, H, W, D = (whole_number(size, least=1) for size in content.pop("latent_shape"))
    record = RunRecord(**content, latent_shape=(T, H, W, D))
    whole_number(record.step)
    if type(record.fingerprint) is not str or type(record.leak) is not bool:
        raise ValueError("a field has the wrong type")
    return record


def _checkpoints(folder: Path) -> list[Path]:
    """All checkpoints below `folder`, oldest first, damaged ones too."""
    found = [path for path in folder.glob(f"{PREFIX}*") if re.fullmatch(r"step-[0-9]{8,18}", path.name)]
    return sorted((path for path in found if path.is_dir()), key=lambda path: int(path.name.removeprefix(PREFIX)))


def _digest_or_none(path: Path) -> str | None:
    """None for a file that cannot be read."""
    try:
        return str(file_digest(path)["xxh3_64"])
    except (OSError, ValueError):
        return None


def _remove_old(folder: Path, keep: int) -> None:
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    for leftover in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover)
