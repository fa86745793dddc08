"""The stages of encoding, which overlap: planned clips -> decoded -> encoded -> stored -> committed, shard after shard.

The encoder is loaded and works in the caller's thread, every other stage works in one of its own: the first clips are
decoded while it is loaded. Batches and their order follow from the tasks alone, so the bytes do not depend on which
stage is slow. T steps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor

from flcache.batch import step_arrays, step_times, step_valid
from flcache.cache import EncodedClip, Failure, RetryWriter, ShardBusy, ShardWriter, ValueRangeError, stage_of
from flcache.encoder import LatentVideoModel
from flcache.engines.figures import Clock, EncoderTimes
from flcache.engines.handover import Handover, Stages
from flcache.engines.job import ClipDone, ClipFailed, EncodeJob, Event, ShardCommitted, ShardTask
from flcache.engines.lane import Encoding, Lane, open_lane
from flcache.errors import DecodeError
from flcache.videos import DecodedClip, PlannedClip

Decoded = tuple[PlannedClip, DecodedClip | DecodeError]

_DECODED_BATCHES = 1  # that wait; the next is being decoded
_ENCODED_BATCHES = 2
_FULL_SHARDS = 1


@dataclass
class _Shard:
    """A shard that this run has claimed, until it is committed."""

    task: ShardTask
    writer: ShardWriter | RetryWriter
    claim: ExitStack
    """Closed when the shard is committed or given up."""
    clips: int = 0
    """How many are stored, or recorded as failed."""


@dataclass(frozen=True)
class _Batch:
    """Decoded clips of neighbouring slots."""

    shard: _Shard
    clips: list[Decoded]
    frames: list[Tensor]
    """Of the clips that could be decoded."""
    encoding: Encoding | None = None
    """None where there are none of these."""


class ShardEncoder:
    """Encodes shards with one model, which the first run loads.

    `decode` gives clips in the order it gets them, and ends at `stop_decoding`. `on_event` is called by one thread at a
    time.
    """

    def __init__(
        self,
        job: EncodeJob,
        load_model: Callable[[], LatentVideoModel],
        decode: Callable[[Iterable[PlannedClip]], Iterator[Decoded]],
        stop_decoding: Callable[[], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self._job, self._decode, self._stop_decoding, self._on_event = job, decode, stop_decoding, on_event
        self._load_model = load_model
        self._lane: Future[Lane] = Future()
        self._telling = threading.Lock()

    def run(self, tasks: Iterable[ShardTask]) -> tuple[list[ShardTask], EncoderTimes]:
        """Encode and commit `tasks`, except those that another run is writing; these are returned.

        Failed clips are recorded and left out. Raises CacheError where writing fails; no shard stays claimed then.
        """
        self._claimed: list[_Shard] = []
        self._in_decoding: deque[_Shard] = deque()
        self._busy: list[ShardTask] = []
        self._clock = Clock()
        self._stages = Stages()
        self._decoded: Handover[_Batch] = Handover(self._stages, _DECODED_BATCHES)
        self._encoded: Handover[_Batch] = Handover(self._stages, _ENCODED_BATCHES)
        self._full: Handover[_Shard] = Handover(self._stages, _FULL_SHARDS)
        try:
            self._stages.start("decode", lambda: self._decode_all(tasks))
            self._stages.start("store", self._store_all)
            self._stages.start("commit", self._commit_all)
            if not self._lane.done():
                self._lane.set_result(open_lane(self._load_model(), self._job.spec))
            self._encode_all()
        except BaseException as error:
            self._stages.fail(error)
            self._lane.cancel()  # a stage may be waiting for it
        try:
            self._stages.join(self._stop_decoding)
        finally:
            for shard in self._claimed:
                shard.claim.close()
        return self._busy, self._clock.times

    def _decode_all(self, tasks: Iterable[ShardTask]) -> None:
        """Batches of decoded clips; none spans two shards."""
        decoded = self._decode(self._claim_clips(tasks))
        for first in decoded:
            shard = self._in_decoding.popleft()
            clips = chain([first], islice(decoded, len(shard.task.clips) - 1))
            while batch := list(islice(clips, self._job.batch_size)):
                lane = self._lane.result()
                frames = [lane.stage(found.frames) for _, found in batch if isinstance(found, DecodedClip)]
                self._decoded.put(_Batch(shard, batch, frames))
        self._decoded.close()

    def _claim_clips(self, tasks: Iterable[ShardTask]) -> Iterator[PlannedClip]:
        """The clips of each shard that nobody else writes or has committed."""
        for task in tasks:
            job, kind = self._job, RetryWriter if task.retry else ShardWriter
            writer = kind(job.cache, task.split, task.shard, job.spec, min_cosine=job.min_cosine, wait=False)
            claim = ExitStack()
            try:
                claim.enter_context(writer)
            except ShardBusy:
                self._busy.append(task)
                continue
            self._claimed.append(shard := _Shard(task, writer, claim))
            if commit := writer.committed:
                self._release(shard)
                self._tell(ShardCommitted(commit, by_another=True))
            else:
                self._in_decoding.append(shard)
                yield from task.clips

    def _encode_all(self) -> None:
        lane, encoding = self._lane.result(), None
        for batch in self._clock.waits_for("decode", self._decoded):
            encoding = lane.encode(batch.frames) if batch.frames else None
            with self._clock.waiting("store"):
                self._encoded.put(_Batch(batch.shard, batch.clips, batch.frames, encoding))
        if encoding is not None:
            encoding.wait()
        self._clock.stop()
        self._encoded.close()

    def _store_all(self) -> None:
        torch.set_num_threads(1)  # of this thread: those that wait for its next cast would take the encoder's cores
        for batch in self._encoded:
            if batch.encoding is not None:
                self._clock.add(len(batch.frames), batch.encoding.wait())
            numbers = iter(range(len(batch.frames)))
            for clip, found in batch.clips:
                number = next(numbers) if isinstance(found, DecodedClip) else None
                self._tell(self._store(batch, clip, found, number))
            batch.shard.clips += len(batch.clips)
            if batch.shard.clips == len(batch.shard.task.clips):
                self._full.put(batch.shard)
        self._full.close()

    def _store(self, batch: _Batch, clip: PlannedClip, found: DecodedClip | DecodeError, number: int | None) -> Event:
        """Write a clip, which is `number` of those encoded together, or record its failure."""
        if isinstance(found, DecodeError):
            stage = "find" if found.reason == "no file" else "decode"
            failure = Failure(clip.clip_id, clip.slot, clip.video, stage, found.reason, str(found), found.attempts)
        else:
            assert batch.encoding is not None and number is not None
            try:
                batch.shard.writer.add(self._encoded_clip(batch.encoding, clip, found, number))
                return ClipDone(clip.clip_id)
            except ValueRangeError as error:
                stage = stage_of(error.reason)
                failure = Failure(clip.clip_id, clip.slot, clip.video, stage, error.reason, str(error), 1)
        batch.shard.writer.fail(failure)
        return ClipFailed(failure)

    def _encoded_clip(self, encoding: Encoding, clip: PlannedClip, decoded: DecodedClip, number: int) -> EncodedClip:
        spec = self._job.spec
        tubelet_size = len(decoded.mask) // spec.latent_shape[0]
        valid_steps = int(step_valid(decoded.mask, tubelet_size).sum())
        return EncodedClip(
            clip_id=clip.clip_id,
            slot=clip.slot,
            latents=encoding.latents(number, clip.clip_id, valid_steps),
            times=step_times(decoded.sampled(nominal=spec.nominal_times), tubelet_size).tolist(),
            timestamps=decoded.timestamps.tolist(),
            mask=decoded.mask.tolist(),
            valid_steps=valid_steps,
            label=clip.label,
            video=clip.video,
            decoder=decoded.decoder,
            arrays=step_arrays(decoded.arrays, tubelet_size),
        )

    def _commit_all(self) -> None:
        """Apart from storing, because it waits for the disk."""
        for shard in self._full:
            commit = shard.writer.commit()
            self._release(shard)
            self._tell(ShardCommitted(commit))

    def _release(self, shard: _Shard) -> None:
        self._claimed.remove(shard)
        shard.claim.close()

    def _tell(self, event: Event) -> None:
        with self._telling:
            self._on_event(event)
