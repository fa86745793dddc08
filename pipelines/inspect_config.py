"""flcache inspect-config --config CONFIG [KEY=VALUE ...]: what a configuration amounts to, before anything is run.

Needs no network and no weights: the encoder is built from its stated architecture, without memory for parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.filesize import decimal

from flcache.cache import get_codec
from flcache.config import Config, ResolvedConfig, as_dict
from flcache.config.yaml_lines import Origin, shown
from flcache.encoder import EncoderDescription, describe_encoder, seen_until
from flcache.errors import ConfigError, FlcacheError
from flcache.leak import check_boundary, legal_boundaries, middle_boundary
from flcache.predictor import build_predictor, training_memory_bytes
from flcache.videos import Video, VideoFolder, needs_duration, plan_clips, read_annotations

from .setup.clips import SPLITS

WIDEST_VALUE = 64
"""Characters of `key: value` after which origins are no longer aligned."""

Shape = tuple[int, int, int, int]
"""(T, H, W, D)"""
Result = TypeVar("Result")


@dataclass
class Findings:
    """Problems, collected so that everything else can still be shown."""

    problems: list[str] = field(default_factory=list)
    """Errors that would stop a stage."""
    notes: list[str] = field(default_factory=list)
    """Paths that are not set yet."""

    def attempt(self, step: Callable[[], Result]) -> Result | None:
        """The result of `step`; where it raises a FlcacheError, None, and the error is added to the problems."""
        try:
            return step()
        except FlcacheError as error:
            if str(error) not in self.problems:  # parts of the report ask for the same
                self.problems.append(str(error))
            return None


def run(resolved: ResolvedConfig) -> None:
    """Print values with their origins, conflicts, parameters and sizes. Raises ConfigError naming all problems."""
    config, findings = resolved.config, Findings()
    _print_section("Configuration", _tree(as_dict(config), resolved.origins))
    _print_section("Conflicts", [str(conflict) for conflict in resolved.conflicts] or ["none"])
    encoder = findings.attempt(lambda: _describe_encoder(config))
    shape = findings.attempt(lambda: _latent_shape(config, encoder)) if encoder else None
    _print_section("Parameters", _parameters(config, encoder, shape, findings))
    _print_section("Latents", _latents(config, encoder, shape, findings))
    _print_section("Dataset", _dataset(config, shape, findings))
    _check_training(config, shape, findings)
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


def _describe_encoder(config: Config) -> EncoderDescription:
    return describe_encoder(config.encoder, trainable=config.encoder_trainable, context=config.encode.context)


def _latent_shape(config: Config, encoder: EncoderDescription) -> Shape:
    if config.clip.frames % encoder.tubelet_size:
        raise ConfigError(
            f"clip.frames is {config.clip.frames}, and a step of this encoder is {encoder.tubelet_size} frames; set a "
            f"multiple of {encoder.tubelet_size}"
        )
    return encoder.latent_shape(config.clip.frames)


def _parameters(
    config: Config, encoder: EncoderDescription | None, shape: Shape | None, findings: Findings
) -> list[str]:
    """Total and trainable parameters, part by part; parts that cannot be built are left out."""
    counts: dict[str, tuple[int, int]] = {}
    if encoder:
        counts["encoder"] = (encoder.total_parameters, encoder.trainable_parameters)
    predictor = findings.attempt(lambda: _predictor_parameters(config, shape)) if shape else None
    if predictor is not None:
        counts["predictor"] = (predictor, predictor)
    counts["together"] = (sum(total for total, _ in counts.values()), sum(trained for _, trained in counts.values()))
    rows = [f"{part:10} {total:>15,} {trained:>15,}" for part, (total, trained) in counts.items()]
    memory = findings.attempt(lambda: _memory(config, encoder, shape)) if encoder and shape and predictor else None
    return [f"{'':10} {'total':>15} {'trainable':>15}", *rows, *(memory or [])]


def _memory(config: Config, encoder: EncoderDescription, shape: Shape) -> list[str]:
    batch_size, steps = config.training.batch_size, shape[0]
    boundaries = legal_boundaries(seen_until(encoder.context, steps))
    if config.allow_leak or not boundaries:
        boundaries = list(range(1, steps))
    rollout_steps = config.training.objective.steps_rolled_out(boundaries, steps)
    memory = training_memory_bytes(config.predictor, shape, batch_size=batch_size, rollout_steps=rollout_steps)
    return [f"training   {decimal(memory)} for the predictor with {batch_size} clips a step, in float32"]


def _predictor_parameters(config: Config, shape: Shape) -> int:
    with torch.device("meta"):
        predictor = build_predictor(config.predictor, shape)
    return sum(parameter.numel() for parameter in predictor.parameters())


def _latents(config: Config, encoder: EncoderDescription | None, shape: Shape | None, findings: Findings) -> list[str]:
    if not encoder or not shape:
        return ["unknown: see the errors"]
    steps, height, width, channels = shape
    seen = findings.attempt(lambda: seen_until(encoder.context, steps)) or list(range(steps))
    context_steps, mode = config.training.context_steps or middle_boundary(seen), encoder.context.mode
    leak = findings.attempt(lambda: check_boundary(seen, context_steps, allow_leak=config.allow_leak))
    clip_bytes = get_codec(config.cache.codec).clip_bytes(shape)
    return [
        f"shape    {steps} x {height} x {width} x {channels} (steps, rows, columns, channels)",
        f"step     {encoder.tubelet_size} frames of {config.clip.frames}",
        f"context  {context_steps} steps, encoded as `{mode}`" + (": LEAKS, and is allowed to" if leak else ""),
        f"bytes    {clip_bytes:,} a clip as {config.cache.codec} ({decimal(clip_bytes)})",
    ]


def _dataset(config: Config, shape: Shape | None, findings: Findings) -> list[str]:
    """One line a split that can be read, and one for all of them."""
    clip_bytes = get_codec(config.cache.codec).clip_bytes(shape) if shape else 0
    lines, all_clips = [], 0
    for split in SPLITS:
        if _is_unset(config, f"dataset.{split}", findings):
            continue
        counts = findings.attempt(partial(_count, config, split))
        if counts:
            videos, missing, clips, rough = counts
            all_clips += clips
            about = "at least " if rough else ""
            sizes = f"{about}{clips:,} clips, {decimal(clips * clip_bytes)}"
            lines.append(f"{split:8} {videos:,} videos, {sizes}{missing}")
    if not _is_unset(config, "dataset.root", findings) and not Path(config.require("dataset.root")).is_dir():
        findings.problems.append(f"dataset.root: {config.dataset.root} is no folder; set dataset.root=PATH")
    total = f"together {all_clips:,} clips, {decimal(all_clips * clip_bytes)}"
    return [*lines, total] if lines else ["unknown until an annotation file can be read"]


def _is_unset(config: Config, key: str, findings: Findings) -> bool:
    """Whether the path at `key` is null; then that is noted."""
    try:
        config.require(key)
    except ConfigError as error:
        findings.notes.append(str(error))
        return True
    return False


def _count(config: Config, split: str) -> tuple[int, str, int, bool]:
    """Videos, words on those that are missing, and clips of `split`, by its annotations and the names of files alone.

    The last is True where only the videos' headers could tell how many clips there are.
    """
    labels = Path(config.dataset.labels) if config.dataset.labels else None
    videos = read_annotations(
        Path(config.require(f"dataset.{split}")),
        labels=labels,
        root=Path(config.dataset.root) if config.dataset.root else None,
        allow_outside=config.dataset.allow_outside,
    )
    rule, missing = config.clip, _missing(config, videos)
    if rule.clips_per_video is not None and rule.short == "pad":
        return len(videos), missing, len(videos) * rule.clips_per_video, False
    return len(videos), missing, len(plan_clips(videos, rule, None)), bool(needs_duration(rule, videos))


def _missing(config: Config, videos: Sequence[Video]) -> str:
    if not config.dataset.root or not Path(config.dataset.root).is_dir():
        return ""
    folder = VideoFolder(Path(config.dataset.root), (video.path for video in videos))
    missing = sum(folder.find(video.path) is None for video in videos)
    return f"; {missing:,} videos missing below dataset.root" if missing else ""


def _check_training(config: Config, shape: Shape | None, findings: Findings) -> None:
    """Values that are right alone and wrong together."""
    if config.encoder_trainable and config.training.source == "cache":
        findings.problems.append(
            "encoder_trainable: latents in a cache train no encoder; set training.source=videos, or "
            "encoder_trainable=false"
        )
    for key in ("cache.dir", "training.dir"):
        _is_unset(config, key, findings)
