"""flcache inspect-config --config C [--measure] [KEY=VALUE ...]: values, sizes and errors of a configuration.

Needs no weights, and no network where the dataset is local: models are built on torch's `meta` device, without memory
for parameters. `--measure` encodes and trains for real, on a few videos, to say how many hours all of them would take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any, TypeVar

import torch
from rich.filesize import decimal
from torch import nn

from flcache.cache import get_codec
from flcache.config import Config, ResolvedConfig, as_dict
from flcache.config.yaml_lines import Origin, shown
from flcache.encoder import LatentVideoModel, describe_encoder
from flcache.errors import ConfigError, FlcacheError
from flcache.leak import check_boundary, legal_boundaries, middle_boundary
from flcache.predictor import build_predictor, training_memory_bytes
from flcache.training import parameter_lines
from flcache.videos import Video, VideoFolder, list_videos, needs_duration, plan_clips
from flcache.videos.annotations import SPLITS
from flcache.videos.remote_path import Place

from .setup.clips import disk_cache, list_of, video_root
from .setup.model import check_encoder_targets
from .setup.timing import measure_rates

WIDEST_VALUE = 64
"""Characters of `key: value` after which origins are no longer aligned."""

Shape = tuple[int, int, int, int]
"""(T, H, W, D)"""
Planned = dict[str, tuple[int, str]]
"""Clips of each split, and "at least " if video headers are needed to know."""
Result = TypeVar("Result")


@dataclass
class Findings:
    """Collected problems, so that everything else can still be shown."""

    problems: list[str] = field(default_factory=list)
    """Errors that would stop a stage."""
    notes: list[str] = field(default_factory=list)
    """Paths that are not set yet."""

    def attempt(self, step: Callable[[], Result]) -> Result | None:
        """The result of `step`; where it raises a FlcacheError, None, and the error is added to the problems."""
        try:
            return step()
        except FlcacheError as error:
            if str(error) not in self.problems:  # several sections may raise the same error
                self.problems.append(str(error))
            return None


def run(resolved: ResolvedConfig, measure: bool = False) -> None:
    """Print values with their origins, conflicts, parameters, sizes and, with `measure`, hours.

    Raises ConfigError naming all problems, and measures nothing if there are any.
    """
    config, findings = resolved.config, Findings()
    _print_section("Configuration", _tree(as_dict(config), resolved.origins))
    _print_section("Conflicts", list(resolved.conflicts) or ["none"])
    trainable, context = config.encoder_trainable, config.encode.context
    encoder = findings.attempt(lambda: describe_encoder(config.encoder, trainable=trainable, context=context))
    shape = findings.attempt(lambda: encoder.latent_shape(config.clip.frames)) if encoder else None
    _print_section("Parameters", _parameters(config, encoder, shape, findings))
    latents = _latents(config, encoder, shape, findings) if encoder and shape else ["unknown: see the errors"]
    _print_section("Latents", latents)
    clip_bytes = get_codec(config.cache.codec).clip_bytes(shape) if shape else 0
    planned: Planned = {}
    _print_section("Dataset", _dataset(config, clip_bytes, planned, findings))
    _check_training(config, findings)
    rates = measure_rates(config) if measure and not findings.problems else {}
    _print_section("Cost", _cost(planned, clip_bytes, rates))
    if findings.notes:
        _print_section("Not set yet", findings.notes)
    if findings.problems:
        raise ConfigError("\n".join(findings.problems))


def _print_section(title: str, lines: list[str]) -> None:
    print(title, *(f"  {line}" for line in lines), "", sep="\n")


def _tree(tree: Mapping[str, Any], origins: Mapping[str, Origin]) -> list[str]:
    rows = list(_rows(tree, origins))
    width = min(WIDEST_VALUE, max(len(text) for text, _ in rows))
    return [f"{text:{width}}  {origin}".rstrip() for text, origin in rows]


def _rows(
    tree: Mapping[str, Any], origins: Mapping[str, Origin], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """`key: value` lines, indented as in YAML, and where each value was written."""
    indent = "  " * len(above)
    for name, value in tree.items():
        key = (*above, name)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:", ""
            yield from _rows(value, origins, key)
        else:
            yield f"{indent}{name}: {shown(value)}", str(origins.get(".".join(key), "default"))


def _parameters(config: Config, encoder: LatentVideoModel | None, shape: Shape | None, findings: Findings) -> list[str]:
    """Total and trainable parameters, part by part; parts that cannot be built are left out."""
    parts: dict[str, nn.Module] = {"encoder": encoder} if encoder else {}
    predictor = None
    if shape:
        with torch.device("meta"):
            numbers = 1 if "actions" in config.dataset.arrays else None  # any, so that no video is looked at
            predictor = findings.attempt(lambda: build_predictor(config.predictor, shape, numbers))
        parts |= {"predictor": predictor} if predictor else {}
    memory = findings.attempt(lambda: _memory(config, encoder, shape)) if encoder and shape and predictor else None
    return [*parameter_lines(parts), *([memory] if memory else [])]


def _memory(config: Config, encoder: LatentVideoModel, shape: Shape) -> str:
    batch_size, steps = config.training.batch_size, shape[0]
    boundaries = legal_boundaries(encoder.seen_until(config.clip.frames))
    if config.allow_leak or not boundaries:
        boundaries = list(range(1, steps))
    rollout_steps = config.training.objective.steps_rolled_out(boundaries, steps)
    averaged = config.training.ema is not None
    memory = training_memory_bytes(
        config.predictor, shape, batch_size=batch_size, rollout_steps=rollout_steps, averaged=averaged
    )
    return f"training   {decimal(memory)} for the predictor with {batch_size} clips a step, in float32"


def _latents(config: Config, encoder: LatentVideoModel, shape: Shape, findings: Findings) -> list[str]:
    seen = findings.attempt(lambda: encoder.seen_until(config.clip.frames)) or list(range(shape[0]))
    context_steps, mode = config.training.context_steps or middle_boundary(seen), encoder.context.mode
    leak = findings.attempt(lambda: check_boundary(seen, context_steps, allow_leak=config.allow_leak))
    clip_bytes = get_codec(config.cache.codec).clip_bytes(shape)
    return [
        f"shape    {' x '.join(map(str, shape))} (steps, rows, columns, channels)",
        f"step     {encoder.tubelet_size} frames of {config.clip.frames}",
        f"context  {context_steps} steps, encoded as `{mode}`" + (": LEAKS, and is allowed to" if leak else ""),
        f"bytes    {clip_bytes:,} a clip as {config.cache.codec} ({decimal(clip_bytes)})",
    ]


def _dataset(config: Config, clip_bytes: int, planned: Planned, findings: Findings) -> list[str]:
    """One line for each split that can be read, and one for all of them; adds their clips to `planned`."""
    root, lines = _noted(lambda: video_root(config), findings), []
    for split in SPLITS:
        found = _noted(partial(list_of, config, split), findings)
        reading = partial(list_videos, found, config.dataset, split, disk_cache(config)) if found else None
        videos = findings.attempt(reading) if reading else None
        if videos is not None:
            planned[split] = clips, rough = _clips(config, videos)
            sizes = f"{rough}{clips:,} clips, {decimal(clips * clip_bytes)}"
            lines.append(f"{split:8} {len(videos):,} videos, {sizes}{_missing(root, videos)}")
    if root and not root.is_dir():
        findings.problems.append(f"dataset.root: {root} is no folder; set dataset.root=PATH")
    all_clips = sum(clips for clips, _ in planned.values())
    total = f"together {all_clips:,} clips, {decimal(all_clips * clip_bytes)}"
    return [*lines, total] if lines else ["unknown until an annotation file can be read"]


def _cost(planned: Planned, clip_bytes: int, rates: Mapping[str, float]) -> list[str]:
    """Bytes and, by `rates` in clips a second, hours: of encoding once, and of an epoch from each source."""
    if "train" not in planned or not clip_bytes:
        return ["unknown until encoder and dataset.train can be read"]
    train, rough = planned["train"]
    every = sum(clips for clips, _ in planned.values())
    clips = {"encode": every, "cache": train, "frozen": train, "unfrozen": train}
    said = {
        "encode": f"once, writes {rough}{decimal(every * clip_bytes)}",
        "cache": f"an epoch, reads {rough}{decimal(train * clip_bytes)}",
        "frozen": f"an epoch, decodes and encodes {rough}{train:,} clips, stores nothing",
        "unfrozen": f"an epoch, the same {rough}{train:,} clips with an encoder that trains",
    }
    hours = {name: clips[name] / rate / 3600 for name, rate in rates.items()}
    times = {name: f": {rough}{hours[name]:.3g} h" if name in hours else "" for name in said}
    rows = [f"{name:8} {words}{times[name]}" for name, words in said.items()]
    return [*rows, _paid_back(hours) if rates else "hours    are measured with --measure"]


def _paid_back(hours: Mapping[str, float]) -> str:
    """After how many epochs from the cache, encoding included, as many live ones would have taken longer."""
    if not {"cache", "frozen"} <= set(hours):
        return "paid     unknown: not every source could be measured"
    saved = hours["frozen"] - hours["cache"]
    if saved <= 0:
        return "paid     never: a live epoch takes no longer than one from the cache"
    return f"paid     after {ceil(hours['encode'] / saved):,} epochs from the cache, compared with live and frozen"


def _noted(find: Callable[[], Result], findings: Findings) -> Result | None:
    """What `find` returns; None, with a note, where it is not configured."""
    try:
        return find()
    except ConfigError as error:
        findings.notes.append(str(error))
        return None


def _clips(config: Config, videos: list[Video]) -> tuple[int, str]:
    """How many clips the annotations of `videos` give, and "at least " if video headers are needed to know."""
    rule = config.clip
    if rule.clips_per_video is not None and rule.short == "pad":
        return len(videos) * rule.clips_per_video, ""
    return len(plan_clips(videos, rule, None)), "at least " if needs_duration(rule, videos) else ""


def _missing(root: Place | None, videos: Sequence[Video]) -> str:
    if not root or not root.is_dir():
        return ""
    folder = VideoFolder(root, (video.path for video in videos))
    missing = sum(folder.find(video.path) is None for video in videos)
    return f"; {missing:,} videos missing below dataset.root" if missing else ""


def _check_training(config: Config, findings: Findings) -> None:
    """Check values that contradict each other, and paths that training needs."""
    if config.encoder_trainable and config.training.source == "cache":
        findings.problems.append(
            "encoder_trainable: latents in a cache train no encoder; set training.source=videos, or "
            "encoder_trainable=false"
        )
    if config.encoder_trainable and config.encoder.dtype not in ("auto", "float32"):
        findings.problems.append(
            f"encoder.dtype: {config.encoder.dtype} weights are too coarse to train; set encoder.dtype=float32, and "
            "training.precision=bf16 to compute in bfloat16"
        )
    findings.attempt(lambda: check_encoder_targets(config))
    for key in ("cache.dir", "training.dir"):
        _noted(partial(config.require, key), findings)
