"""Encoding as plain values: a job, its shard tasks, and the events that report progress.

All of them can be pickled: a task runs wherever the videos and the cache can be reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flcache.cache import CacheSpec, Commit, Failure, latent_differences
from flcache.cache.storage import Location
from flcache.encoder import ContextRule, EncoderSource, LatentVideoModel, hard_keys, load_encoder
from flcache.errors import SpecMismatch
from flcache.videos import ClipRule, PlannedClip
from flcache.videos.remote_path import Place
from flcache.videos.video_file import VideoFile


@dataclass(frozen=True)
class EncodeJob:
    """The settings that all shard tasks of a cache share."""

    cache: Location
    video_root: Place
    """The folder that the annotated paths of videos are relative to."""
    other_case: Mapping[str, VideoFile]
    """The `VideoFolder.other_case` of that folder."""
    spec: CacheSpec
    encoder: EncoderSource
    context: ContextRule
    device: str
    decode_workers: int
    decode_timeout_s: float
    batch_size: int
    """Clips of neighbouring slots that go through the encoder together."""
    min_cosine: float | None = None
    """Least cosine of a stored latent vector with the encoder's."""
    max_clip_bytes: int = ClipRule.max_bytes
    """A clip fails whose frames take more."""
    compile: bool = False
    """Whether `torch.compile` takes the encoder."""

    def load_model(self) -> LatentVideoModel:
        """The encoder. Raises EncoderError if it cannot be loaded, SpecMismatch if it is not the one of the spec."""
        model = load_encoder(self.encoder, context=self.context, device=self.device, compile=self.compile)
        found = CacheSpec({**self.spec.hard, **hard_keys(model)}, {})
        if fields := latent_differences(self.spec, found):
            raise SpecMismatch(
                f"{self.cache}: the encoder that is loaded here does not make its latents: {'; '.join(fields)}; "
                "give this machine the same weights and processor"
            )
        return model


@dataclass(frozen=True)
class ShardTask:
    """One shard of the plan, its clips in slot order: the unit of work, of retry and of commit."""

    split: str
    shard: int
    clips: tuple[PlannedClip, ...]
    retry: bool = False
    """The shard is committed, and `clips` are those of it that failed."""


@dataclass(frozen=True)
class ClipDone:
    """A clip is stored in its shard, which is not committed yet."""

    clip_id: str


@dataclass(frozen=True)
class ClipFailed:
    """A clip is left out of its shard, which is not committed yet."""

    failure: Failure


@dataclass(frozen=True)
class ShardCommitted:
    """A shard is committed, by this run or by another."""

    commit: Commit
    by_another: bool = False
    """Then this run has sent no events of its clips."""


Event = ClipDone | ClipFailed | ShardCommitted
