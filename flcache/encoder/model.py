"""`LatentVideoModel`: a Hugging Face encoder with its processor, from uint8 frames to latents.

B clips, F frames, T steps, H x W patch grid, D channels; h, w pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from flcache.batch import send
from flcache.encoder.context import ContextRule, Pass, passes, seen_until
from flcache.encoder.families import FAMILIES, Family, check_pixels, latent_width, patch_shape, to_grid
from flcache.encoder.processing import output_size
from flcache.encoder.trainable import set_trainable, used_parameters
from flcache.errors import EncoderError

Clips = Tensor | Sequence[Tensor]
"""uint8 frames: one tensor (B, F, h, w, 3), or B tensors (F, h, w, 3) whose sizes in pixels may differ."""

MOST_COMPILED = 256
"""Compiled forms of an encoder, one for each shape of its input."""
CPU_VALUES = 2**20
"""Latent values of one forward pass on a CPU; more do not fit its caches. Measured on V-JEPA 2 of 384 x 12 at 256 px,
2 cores: 32 single steps take 2.8 s in one pass and 2.4 s in passes of ten; 4 clips take 4.3 s, and 4.0 s one by one."""


class LatentVideoModel(nn.Module):
    """Preprocessing and encoding: uint8 frames (B, F, h, w, 3) in, float32 latents (B, T, H, W, D) out.

    `context` says which steps are encoded jointly (None, and for encoders of single images: every step alone).
    `trainable` is False, True or name patterns. A frozen one computes no gradients and stays in eval mode, also under
    `.train()`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        processor: Any,
        family: Family,
        *,
        context: ContextRule | None = None,
        trainable: bool | Sequence[str] = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.processor = processor
        self.family = family
        self.context = context if context is not None and family.video else ContextRule()
        self.config: Any = encoder.config
        self.tubelet_size = 1 if self.context.repeat_frames else patch_shape(self.config)[0]
        """Frames of the clip per step."""
        set_trainable(encoder, trainable, used_parameters(encoder, family) if trainable else ())
        self.compiled = False
        self.trainable = any(parameter.requires_grad for parameter in encoder.parameters())
        self.train(self.training)

    def train(self, mode: bool = True) -> LatentVideoModel:
        super().train(mode)
        self.encoder.train(mode and self.trainable)
        return self

    def compile_encoder(self) -> None:
        """Compile the forward pass, once for each number of clips: latents then never depend on which came first."""
        dynamo: Any = importlib.import_module("torch._dynamo.config")  # takes 2 s
        dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_COMPILED)
        self.encoder.compile(dynamic=False, fullgraph=True)  # one graph or an error: no silent fall back to eager
        self.compiled = True

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    @property
    def leading_tokens(self) -> int | None:
        """`encoder.leading_tokens` that it must be loaded with; None where flcache knows its tokens."""
        return None if self.config.model_type in FAMILIES else self.family.class_tokens

    def num_steps(self, num_frames: int) -> int:
        """Latent steps of a clip of `num_frames` frames. Raises EncoderError where frames would be lost."""
        if num_frames % self.tubelet_size:
            raise EncoderError(
                f"encoder: {num_frames} frames are not a multiple of its step of {self.tubelet_size} frames; the "
                f'last would be lost: set "clip.frames" to a multiple of {self.tubelet_size}'
            )
        return num_frames // self.tubelet_size

    def latent_shape(self, num_frames: int) -> tuple[int, int, int, int]:
        """(T, H, W, D) of a clip of `num_frames` frames."""
        _, patch_height, patch_width = patch_shape(self.config)
        height, width = output_size(self.processor)
        grid = (height // patch_height, width // patch_width)
        return (self.num_steps(num_frames), *grid, latent_width(self.config))

    def seen_until(self, num_frames: int) -> list[int]:
        """For each step of such a clip the last step whose pixels could have influenced it."""
        return seen_until(self.context, self.num_steps(num_frames))

    def preprocess(self, clips: Clips) -> Tensor:
        """uint8 frames -> what the encoder takes, (B, F, 3, h, w) on its device, resized, cropped and normalised."""
        videos = [_channels_first(clip, self.device) for clip in clips]
        given = videos if self.family.video else [frame for video in videos for frame in video]
        (pixels,) = self.processor(given, return_tensors="pt", device=self.device).values()  # keys differ by processor
        if not isinstance(pixels, Tensor):
            raise EncoderError("encoder: the processor answered clips of different sizes; give it a fixed crop_size")
        return pixels.reshape(len(videos), -1, *pixels.shape[-3:])

    def encode(self, pixels: Tensor) -> Tensor:
        """Preprocessed pixels (B, F, 3, h, w) -> latents (B, T, H, W, D), float32."""
        steps = self.num_steps(pixels.shape[1])
        by_length = groupby(passes(self.context, steps), key=lambda piece: len(piece.steps))
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            latents = [self._encode_passes(pixels, list(pieces)) for _, pieces in by_length]
        return torch.cat(latents, dim=1).float()

    def forward(self, clips: Clips) -> Tensor:
        """uint8 frames (B, F, h, w, 3), or a sequence of (F, h, w, 3) -> latents (B, T, H, W, D), float32."""
        return self.encode(self.preprocess(clips))

    def _encode_passes(self, pixels: Tensor, pieces: Sequence[Pass]) -> Tensor:
        """The kept steps (B, T', H, W, D) of passes of one length over pixels (B, F, 3, h, w), in one forward pass."""
        size = self.tubelet_size
        frames = [pixels[:, piece.steps.start * size : piece.steps.stop * size] for piece in pieces]
        joint = torch.stack(frames, dim=1).flatten(0, 1)  # (B * passes, frames, 3, h, w)
        if self.context.repeat_frames:
            joint = joint.repeat_interleave(patch_shape(self.config)[0], dim=1)
        check_pixels(self.family, self.config, joint)
        latents = torch.cat([self._encode_jointly(part) for part in torch.split(joint, self._at_once(joint))])
        latents = latents.reshape(len(pixels), len(pieces), *latents.shape[1:])  # (B, passes, steps, H, W, D)
        return torch.cat([latents[:, number, _within(piece)] for number, piece in enumerate(pieces)], dim=1)

    def _encode_jointly(self, pixels: Tensor) -> Tensor:
        """One forward pass: (B, F, 3, h, w) -> (B, T, H, W, D)."""
        num_clips, video = len(pixels), self.family.video
        steps, *grid = self._shape(pixels)
        pixels = pixels.to(next(self.encoder.parameters()).dtype)
        tokens = self.encoder(pixels if video else pixels.flatten(0, 1)).last_hidden_state  # (B, N, D) or (B * F, N, D)
        latents = to_grid(self.family, self.config, tokens, steps if video else 1, *grid)
        return latents.reshape(num_clips, steps, *latents.shape[2:])

    def _at_once(self, pixels: Tensor) -> int:
        """How many of the passes in `pixels` (B * passes, F, 3, h, w) go through the encoder together."""
        if pixels.device.type != "cpu":
            return len(pixels)
        return max(1, CPU_VALUES // (prod(self._shape(pixels)) * latent_width(self.config)))

    def _shape(self, pixels: Tensor) -> tuple[int, int, int]:
        """(T, H, W) of one forward pass over `pixels` (B, F, 3, h, w)."""
        tubelet, patch_height, patch_width = patch_shape(self.config)
        num_frames, _, height, width = pixels.shape[1:]
        steps = num_frames // tubelet if self.family.video else num_frames
        return steps, height // patch_height, width // patch_width


def _within(piece: Pass) -> slice:
    """Where the kept steps lie among those of the pass."""
    return slice(piece.kept.start - piece.steps.start, piece.kept.stop - piece.steps.start)


def _channels_first(clip: Tensor, device: torch.device) -> Tensor:
    """(F, h, w, 3) uint8 -> (F, 3, h, w) uint8 on `device`."""
    if clip.dtype != torch.uint8:
        raise EncoderError(f"encoder: frames must be uint8, not {clip.dtype}: floats would be rescaled twice")
    if clip.ndim != 4 or clip.shape[-1] != 3:
        raise EncoderError(f"encoder: a clip is (F, h, w, 3), not {tuple(clip.shape)}")
    return send(clip, device).permute(0, 3, 1, 2)
