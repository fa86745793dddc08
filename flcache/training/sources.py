"""Live videos as a training source: the clips of a plan, decoded in the epoch order that a cache would use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from flcache.batch import VideoBatch, step_arrays, step_times, step_valid
from flcache.cache import EpochSampler
from flcache.errors import DataError
from flcache.training.augment import augmented
from flcache.training.options import Augmentation
from flcache.videos import DecodedClip, DecodePool, PlannedClip, VideoFolder, decode_planned

BLACK_SIZE = 64
"""Pixels of an empty batch; the processor resizes them."""


@dataclass(eq=False)
class VideoSource:
    """Batches of decoded frames; iterating yields the rest of the current epoch, as `LatentLoader` does.

    A clip that cannot be decoded is left out of its batch and listed in `failures` with its reason, never replaced. An
    empty batch is skipped; with several processes it is yielded as a batch of no clips. Raises DataError once more than
    `max_failed_fraction` of the clips have failed. `augment` changes the frames, anew in every epoch.
    """

    clips: Sequence[PlannedClip]
    folder: VideoFolder
    pool: DecodePool
    sampler: EpochSampler
    _: KW_ONLY
    context_steps: int
    tubelet_size: int
    max_failed_fraction: float
    nominal_times: bool = True
    augment: Augmentation | None = None
    failures: dict[str, str] = field(default_factory=dict, init=False)

    def __iter__(self) -> Iterator[VideoBatch]:
        shares = list(self.sampler.remaining())
        clips = [self.clips[index] for share in shares for index in share.tolist()]
        decoding = decode_planned(self.pool, self.folder, clips)
        for share in shares:
            decoded = [next(decoding) for _ in share]
            epoch = self.sampler.epoch
            self.sampler.advance()
            good = [(clip, item) for clip, item in decoded if isinstance(item, DecodedClip)]
            self._note_failures([(clip, item) for clip, item in decoded if not isinstance(item, DecodedClip)])
            if good:
                yield self._batch(good, epoch)
            elif self.sampler.world_size > 1:  # other processes wait for the gradients of this one
                yield self._empty_batch(clips[0].request.frames)

    def state_dict(self) -> dict[str, int]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.load_state_dict(state)

    def _batch(self, clips: Sequence[tuple[PlannedClip, DecodedClip]], epoch: int) -> VideoBatch:
        sampled = [decoded.sampled(nominal=self.nominal_times) for _, decoded in clips]
        times = [step_times(seconds, self.tubelet_size) for seconds in sampled]
        valid = [step_valid(decoded.mask, self.tubelet_size) for _, decoded in clips]
        arrays = [step_arrays(decoded.arrays, self.tubelet_size) for _, decoded in clips]
        return VideoBatch(
            frames=tuple(self._frames(clip.clip_id, decoded, epoch) for clip, decoded in clips),
            times=torch.stack([torch.from_numpy(seconds) for seconds in times]),
            valid=torch.stack([torch.from_numpy(steps) for steps in valid]),
            ids=tuple(clip.clip_id for clip, _ in clips),
            context_steps=self.context_steps,
            arrays={name: torch.stack([torch.from_numpy(each[name]) for each in arrays]) for name in self.pool.arrays},
        )

    def _frames(self, clip_id: str, decoded: DecodedClip, epoch: int) -> Tensor:
        frames = torch.from_numpy(decoded.frames)
        if not self.augment:
            return frames
        return augmented(frames, self.augment, seed=self.sampler.seed, epoch=epoch, clip_id=clip_id)

    def _empty_batch(self, num_frames: int) -> VideoBatch:
        """A black clip that passes through the model without effect on the loss: no step of it is valid."""
        steps = num_frames // self.tubelet_size
        return VideoBatch(
            frames=(torch.zeros(num_frames, BLACK_SIZE, BLACK_SIZE, 3, dtype=torch.uint8),),
            times=torch.arange(steps, dtype=torch.float32)[None],
            valid=torch.zeros(1, steps, dtype=torch.bool),
            ids=(),
            context_steps=self.context_steps,
            arrays={name: torch.zeros(1, steps, self.tubelet_size * width) for name, width in self.pool.arrays.items()},
        )

    def _note_failures(self, failed: Sequence[tuple[PlannedClip, Exception]]) -> None:
        self.failures |= {clip.clip_id: str(error) for clip, error in failed}
        if len(self.failures) > self.max_failed_fraction * len(self.clips):
            clip_id, reason = next(iter(self.failures.items()))
            raise DataError(
                f"{len(self.failures)} of {len(self.clips)} clips cannot be decoded, {clip_id} first ({reason}); mend "
                f"the videos, or allow more with encode.max_failed_fraction"
            )
