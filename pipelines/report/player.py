"""The pictures of a report: colours from the first clips of the split, and a few of these rolled out, with frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.cache import LatentCache, read_plan, read_spec
from flcache.config import Config
from flcache.errors import DataError, DecodeError
from flcache.evaluation import Predict, copy_last, true_context
from flcache.evaluation.report import (
    MAX_CLIPS,
    RolledClip,
    TargetMoments,
    clips_that_fit,
    player_content,
    seen_region,
)
from flcache.videos import ClipRequest, DecodedClip, PlannedClip, VideoFolder, decode_planned, planned_clips

from ..setup.clips import open_pool, read_split
from ..setup.encoder import hard_spec, pick_device
from ..setup.model import load_trained
from ..setup.progress import Progress
from ..setup.source import LatentSource, Reading, latent_batches, open_source

_LATER_S = 1e-4
"""Added to the time of a step, so that rounding never shows the frame before."""


@dataclass(frozen=True)
class Pictures:
    player: dict[str, Any]
    """As `player_content` gives it."""
    unread: dict[str, str]
    """Clips without frames, and why."""


@torch.no_grad()
def gather_pictures(config: Config, checkpoint: Path) -> Pictures:
    """Roll a few clips of `evaluation.split` out with `checkpoint`, in colours fitted on its first clips."""
    device = pick_device(config.training.device)
    split = config.evaluation.split
    with open_source(config, Reading(split, config.evaluation.batch_size, shuffle=False), device=device) as source:
        model = load_trained(config, source, checkpoint).to(device)
        processor = _processor(config, source)
        num_clips = min(_count_clips(config), MAX_CLIPS)
        chosen = set(np.linspace(0, num_clips - 1, clips_that_fit(source.latent_shape)).round().astype(int).tolist())
        moments, clips = TargetMoments(source.latent_shape[-1]), []
        with Progress(f"Reading the {split} split", num_clips, "clips") as progress:
            for batch in latent_batches(model, source, device):
                batch = _until(batch, config.evaluation.horizons)
                moments.add(batch.target[batch.target_valid])
                positions = range(progress.done, progress.done + len(batch))
                clips += [
                    roll_out(model.predictor.predict, batch, row) for row, at in enumerate(positions) if at in chosen
                ]
                for _ in batch.ids:
                    progress.advance()
                if progress.done >= num_clips:
                    break
    basis = moments.basis()
    clips, unread = _with_frames(config, clips, processor)
    return Pictures(player_content(clips, basis), unread)


def roll_out(predict: Predict, batch: LatentBatch, row: int) -> RolledClip:
    """One clip of a batch with its prediction and its copy of the last context step, copied out of the batch."""
    one = slice(row, row + 1)
    context, times = true_context(batch)[one], (batch.context_times[one], batch.target_times[one])
    return RolledClip(
        clip_id=batch.ids[row],
        label=None,
        times=batch.times[row].cpu().numpy(),
        valid=batch.valid[row].cpu().numpy(),
        context=_kept(context[0]),
        target=_kept(batch.target[row]),
        prediction=_kept(predict(batch.context[one], *times)[0]),
        copy=_kept(copy_last(context, *times)[0]),
        frames=None,
    )


def _kept(latents: Tensor) -> Tensor:
    """A copy on the CPU: the loader reuses the memory of its batches."""
    return latents.float().cpu().clone()


def _until(batch: LatentBatch, horizons: int | None) -> LatentBatch:
    """The batch without steps further ahead than `horizons`."""
    if horizons is None:
        return batch
    steps = slice(batch.context_steps + horizons)
    return replace(
        batch,
        latents=batch.latents[:, steps],
        targets=batch.targets[:, steps],
        times=batch.times[:, steps],
        valid=batch.valid[:, steps],
    )


def _count_clips(config: Config) -> int:
    """How many clips of the split the source gives; live videos that cannot be decoded are counted too."""
    split = config.evaluation.split
    if config.training.source == "cache":
        return len(LatentCache(config.require("cache.dir"), split))
    return len(read_split(config, split).clips)


def _processor(config: Config, source: LatentSource) -> dict[str, Any]:
    """The fields of the processor that made the latents."""
    hard = hard_spec(config, source.encoder) if source.encoder else read_spec(Path(config.require("cache.dir"))).hard
    fields: dict[str, Any] = hard.get("processor", {})
    return fields


def _with_frames(
    config: Config, clips: list[RolledClip], processor: dict[str, Any]
) -> tuple[list[RolledClip], dict[str, str]]:
    """The clips with their labels and frames, and why some have no frames."""
    try:
        planned = {plan.clip_id: plan for plan in _planned(config, {clip.clip_id for clip in clips})}
    except DataError as error:
        return clips, {clip.clip_id: str(error) for clip in clips}
    clips = [replace(clip, label=planned[clip.clip_id].label) for clip in clips]
    folder = VideoFolder(Path(config.require("dataset.root")))
    framed, unread = [], {}
    with open_pool(config) as pool:
        decoding = decode_planned(pool, folder, (_frame_a_step(planned[clip.clip_id], clip.times) for clip in clips))
        for clip, (_, decoded) in zip(clips, decoding, strict=True):
            if isinstance(decoded, DecodeError):
                unread[clip.clip_id] = str(decoded)
            frames = None if isinstance(decoded, DecodeError) else _crop(decoded, processor)
            framed.append(replace(clip, frames=frames))
    return framed, unread


def _planned(config: Config, clip_ids: set[str]) -> list[PlannedClip]:
    """The clips with these ids, as the source of the run has planned them."""
    split = config.evaluation.split
    if config.training.source == "cache":
        plan = read_plan(Path(config.require("cache.dir")))
        plan = plan[plan["split"] == split]
    else:
        plan = read_split(config, split).clips
    return planned_clips(plan[plan["clip_id"].isin(clip_ids)])


def _frame_a_step(clip: PlannedClip, times: Any) -> PlannedClip:
    """The clip with one frame a step instead; `times` (T,) of the steps count from its first frame."""
    first_s = clip.request.timestamps[0] if clip.request.timestamps else clip.request.start_s
    timestamps = tuple(first_s + float(seconds) + _LATER_S for seconds in times)
    return replace(clip, request=ClipRequest(len(timestamps), first_s, timestamps, None, "pad"))


def _crop(clip: DecodedClip, processor: dict[str, Any]) -> Any:
    """(T, h, w, 3) the part of the frames that the encoder saw."""
    left, top, right, bottom = seen_region(processor, *clip.frames.shape[1:3])
    return clip.frames[:, top:bottom, left:right]
