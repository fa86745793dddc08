"""flcache probe --config CONFIG [--checkpoint P] [--json] [KEY=VALUE ...]: label accuracy on predicted latents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from flcache.batch import LatentBatch
from flcache.config import Config
from flcache.errors import DataError
from flcache.evaluation import (
    Accuracy,
    Labelled,
    ProbeTest,
    clip_seeds,
    copy_last,
    given,
    plain,
    train_probes,
    true_context,
)
from flcache.training import WorldModel, chosen_checkpoint

from .setup.encoder import pick_device
from .setup.model import load_trained
from .setup.running import as_trained
from .setup.source import LatentSource, Reading, known_videos, latent_batches, open_source, source_clips

KINDS = ("true", "predicted", "copied")


Classes = Mapping[str, int]
"""The number of a clip's label among those of the training split, by clip id."""


def run(config: Config, checkpoint: Path | None = None, as_json: bool = False) -> None:
    """Train probes on the true targets of the training split; test them on `evaluation.split`: on its true targets, on
    the predictions of the newest or the named checkpoint, and on copies of the last context step."""
    directory = Path(config.require("training.dir"))
    checkpoint = chosen_checkpoint(directory / "checkpoints", checkpoint)
    device = pick_device(config.training.device)
    names, train_classes, test_classes = _classes(config, config.evaluation.split)
    options = config.probe
    with open_source(config, Reading("train", options.batch_size, shuffle=True), device=device) as source:
        model = load_trained(config, source, checkpoint).to(device)
        probes = train_probes(
            lambda: _labelled(latent_batches(model, source, device), train_classes),
            channels=source.latent_shape[-1],
            classes=len(names),
            options=options,
            seed=config.seed,
            device=device,
        )
        test = _test(config, probes, model, source, test_classes, device)
    found = test.accuracies()
    content = {
        "clips": test.clips,
        "classes": len(names),
        "chance": test.chance,
        "probes": plain(found),
        "leak": source.leak,
    }
    (directory / "probe.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(content))
        return
    Console().print(_table(found, test))
    print(f"{checkpoint}: probed on {test.clips} clips of {config.evaluation.split}; kept in {directory}/probe.json")


@torch.no_grad()
def _test(
    config: Config,
    probes: Mapping[str, nn.Module],
    model: WorldModel,
    beside: LatentSource,
    classes: Classes,
    device: str,
) -> ProbeTest:
    test = ProbeTest(probes, known_videos(config, config.evaluation.split))
    reading = Reading(config.evaluation.split, config.evaluation.batch_size, shuffle=False)
    predictor, precision = model.predictor, as_trained(config.training.precision, device)
    predict, sample = precision(predictor.predict), precision(predictor.sample)
    with open_source(config, reading, device=device, beside=beside) as source:
        for batch in latent_batches(model, source, device):
            chosen, labels = _pick(batch, classes)
            if not len(chosen):
                continue
            times = batch.context_times, batch.target_times
            if predictor.generative:
                predicted = sample(batch.context, *times, clip_seeds(config.seed, batch.ids)).float()
            else:
                predicted = predict(*given(batch, None, actions=predictor.num_actions > 0)).float()
            copied = copy_last(true_context(batch), *times)
            kinds = {"true": batch.target, "predicted": predicted, "copied": copied}
            ids = [batch.ids[row] for row in chosen.tolist()]
            chosen = chosen.to(device)
            kept = {kind: latents[chosen] for kind, latents in kinds.items()}
            test.add(kept, batch.target_valid[chosen], labels.to(device), ids)
    return test


@torch.no_grad()
def _labelled(batches: Iterator[LatentBatch], classes: Classes) -> Iterator[Labelled]:
    """The true targets of clips that have a label."""
    for batch in batches:
        chosen, labels = _pick(batch, classes)
        chosen = chosen.to(batch.targets.device)
        if len(chosen):
            yield Labelled(batch.target[chosen], batch.target_valid[chosen], labels)


def _pick(batch: LatentBatch, classes: Classes) -> tuple[Tensor, Tensor]:
    """Rows (b,) of the clips of `batch` that have a class and a target that is not padding, and their classes (b,)."""
    usable = batch.target_valid.any(1).tolist()
    known = [row for row, clip in enumerate(batch.ids) if clip in classes and usable[row]]
    return torch.tensor(known, dtype=torch.long), torch.tensor([classes[batch.ids[row]] for row in known]).long()


def _classes(config: Config, tested: str) -> tuple[list[str], Classes, Classes]:
    """The labels of the training split, and the classes of its clips and of those of the `tested` split.

    Raises DataError for fewer than two labels.
    """
    train, test = _labels(config, "train"), _labels(config, tested)
    names = sorted(set(train.values()))
    if len(names) < 2:
        raise DataError(
            f"dataset.train: {len(names)} labels; a probe needs at least two to tell apart: take annotations with "
            f"labels (Kinetics CSV, or dataset.labels)"
        )
    numbers = {name: number for number, name in enumerate(names)}
    trained, tested_on = ({clip: numbers[name] for clip, name in of.items() if name in numbers} for of in (train, test))
    return names, trained, tested_on


def _labels(config: Config, split: str) -> dict[str, str]:
    clips = source_clips(config, split)
    labelled = clips[clips["label"].notna()]
    return dict(zip(labelled["clip_id"].astype(str), labelled["label"].astype(str), strict=True))


def _table(found: Mapping[str, Mapping[str, Accuracy]], test: ProbeTest) -> Table:
    table = Table("probe", title=f"Accuracy on latents that are (chance {test.chance:.3f})")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    for name, kinds in found.items():
        table.add_row(name, *(_cell(kinds[kind]) for kind in KINDS))
    return table


def _cell(found: Accuracy) -> str:
    """Accuracy with both bounds, since Wilson's interval is not symmetric."""
    return f"{found.accuracy:.3f} ({found.interval.low:.2f} to {found.interval.high:.2f})"
