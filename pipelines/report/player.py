"""The pictures of a report: some clips of the split rolled out, with their frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flcache.batch import LatentBatch
from flcache.cache import LatentCache
from flcache.config import Config
from flcache.errors import DataError, DecodeError
from flcache.evaluation import Prediction, copy_last, given, true_context
from flcache.evaluation.report import (
    MAX_CLIPS,
    RolledClip,
    TargetMoments,
    clips_that_fit,
    player_content,
    seen_region,
)
from flcache.videos import ClipRequest, PlannedClip, VideoFolder, decode_planned, planned_clips

from ..setup.cache import cache_store
from ..setup.clips import open_pool, read_split, video_root
from ..setup.encoder import pick_device
from ..setup.model import load_trained
from ..setup.progress import Progress
from ..setup.source import Reading, latent_batches, open_source, source_clips

_LATER_S = 1e-4
"""Added to the time of a step, so that rounding never shows the frame before."""


@torch.no_grad()
def gather_pictures(config: Config, checkpoint: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The player's content, some clips of `evaluation.split` rolled out with `checkpoint`; and why clips lack frames.

    The colours are fitted on the first clips of the split.
    """
    device, split = pick_device(config.training.device), config.evaluation.split
    with open_source(config, Reading(split, config.evaluation.batch_size, shuffle=False), device=device) as source:
        model = load_trained(config, source, checkpoint).to(device)
        predictor = model.predictor
        num_clips = min(_count_clips(config), MAX_CLIPS)
        chosen = set(np.linspace(0, num_clips - 1, clips_that_fit(source.latent_shape)).round().astype(int).tolist())
        moments, clips = TargetMoments(source.latent_shape[-1]), []
        with Progress(f"Reading the {split} split", num_clips, "clips") as progress:
            for batch in latent_batches(model, source, device):
                batch = _until(batch, config.evaluation.horizons)
                moments.add(batch.target[batch.target_valid])
                for row in range(len(batch)):
                    if progress.done in chosen:
                        clips.append(roll_out(predictor.predict, batch, row, actions=predictor.num_actions > 0))
                    progress.advance()
                if progress.done >= num_clips:
                    break
    clips, unread = _with_frames(config, clips, source.hard.get("processor", {}))
    return player_content(clips, moments.basis()), unread


def roll_out(predict: Prediction, batch: LatentBatch, row: int, *, actions: bool = False) -> RolledClip:
    """One clip of a batch, its prediction, and the copy of its last context step, in memory of their own."""
    one = slice(row, row + 1)
    context, times = true_context(batch)[one], (batch.context_times[one], batch.target_times[one])
    conditions = [each[one] for each in given(batch, None, actions=actions)]
    return RolledClip(
        clip_id=batch.ids[row],
        times=batch.times[row].cpu().numpy(),
        valid=batch.valid[row].cpu().numpy(),
        context=_kept(context[0]),
        target=_kept(batch.target[row]),
        prediction=_kept(predict(*conditions)[0]),
        copy=_kept(copy_last(context, *times)[0]),
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
    """How many clips the split has, including live videos that cannot be decoded."""
    split = config.evaluation.split
    if config.training.source == "cache":
        return len(LatentCache(cache_store(config), split))
    return len(read_split(config, split).clips)


def _with_frames(
    config: Config, clips: list[RolledClip], processor: Mapping[str, Any]
) -> tuple[list[RolledClip], dict[str, str]]:
    """The clips with labels and with frames as cropped for the encoder, and the reason for each without frames."""
    try:
        plan = source_clips(config, config.evaluation.split)
        wanted = planned_clips(plan[plan["clip_id"].isin({clip.clip_id for clip in clips})])
    except DataError as error:
        return clips, {clip.clip_id: str(error) for clip in clips}
    planned = {clip.clip_id: clip for clip in wanted}
    clips = [replace(clip, label=planned[clip.clip_id].label) for clip in clips]
    folder = VideoFolder(video_root(config))
    framed, unread = [], {}
    with open_pool(config) as pool:
        decoding = decode_planned(pool, folder, (_frame_a_step(planned[clip.clip_id], clip.times) for clip in clips))
        for clip, (_, decoded) in zip(clips, decoding, strict=True):
            if isinstance(decoded, DecodeError):
                unread[clip.clip_id] = str(decoded)
                framed.append(clip)
            else:
                left, top, right, bottom = seen_region(processor, *decoded.frames.shape[1:3])
                framed.append(replace(clip, frames=decoded.frames[:, top:bottom, left:right]))
    return framed, unread


def _frame_a_step(clip: PlannedClip, times: Any) -> PlannedClip:
    """The clip with one frame per step; `times` (T,) are seconds after its first frame."""
    first_s = clip.request.timestamps[0] if clip.request.timestamps else clip.request.start_s
    timestamps = tuple(first_s + float(seconds) + _LATER_S for seconds in times)
    request = ClipRequest(len(timestamps), first_s, timestamps, None, "pad", clip.request.end_s)
    return replace(clip, request=request)
