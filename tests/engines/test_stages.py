"""Stages that overlap: the same bytes whichever stage is slow, and an error in one of them ends the others."""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trees import tree

from flcache.cache import make_spec
from flcache.cache.storage import LocalStore
from flcache.encoder import ContextRule, EncoderSource
from flcache.engines import ClipDone, ClipFailed, EncodeJob, Event, ShardCommitted, ShardTask
from flcache.engines.stages import Decoded, ShardEncoder
from flcache.errors import CacheError, DecodeError, SpecMismatch
from flcache.videos import ClipRequest, DecodedClip, PlannedClip

SHAPE = (2, 3, 4, 8)
FRAMES = 4
BAD = 5
"""The clip of every shard that cannot be decoded."""


class Projection(torch.nn.Module):
    """Latents that depend on the frames: a fixed map of each frame's mean colour."""

    device = torch.device("cpu")

    def __init__(self, slow_s: float = 0.0) -> None:
        super().__init__()
        self.slow_s = slow_s
        self.batches: list[int] = []
        self.map = torch.linspace(-1, 1, 3 * int(np.prod(SHAPE[1:]))).reshape(3, *SHAPE[1:])

    def forward(self, clips: list[Tensor]) -> Tensor:
        self.batches.append(len(clips))
        time.sleep(self.slow_s)
        means = torch.stack([clip.float().mean(dim=(1, 2))[:: FRAMES // SHAPE[0]] for clip in clips])  # (B, T, 3)
        return torch.einsum("btc,chwd->bthwd", means, self.map)


@pytest.fixture
def job(tmp_path: Path) -> EncodeJob:
    layout, context = {"shape": list(SHAPE)}, {"mode": "step", "seen_until": [0, 1]}
    spec = make_spec({"encoder": "projection", "layout": layout, "context": context, "codec": "float16"})
    return EncodeJob(
        cache=tmp_path / "cache",
        video_root=tmp_path,
        other_case={},
        spec=spec,
        encoder=EncoderSource(),
        context=ContextRule(),
        device="cpu",
        decode_workers=1,
        decode_timeout_s=60.0,
        batch_size=4,
    )


def tasks(shards: int = 3, clips: int = 10) -> list[ShardTask]:
    request = ClipRequest(FRAMES, 0.0, (0.0, 1.0, 2.0, 3.0), None, "pad")
    return [
        ShardTask(
            "train",
            shard,
            tuple(PlannedClip(f"v{shard}x{k}-0", f"v{shard}x{k}", "v.mp4", None, k, request) for k in range(clips)),
        )
        for shard in range(shards)
    ]


def decoder(slow_s: float = 0.0) -> Callable[[Iterable[PlannedClip]], Iterator[Decoded]]:
    def decode(clips: Iterable[PlannedClip]) -> Iterator[Decoded]:
        for clip in clips:
            time.sleep(slow_s)
            if clip.slot == BAD:
                yield clip, DecodeError(f"{clip.video}: frame 3 cannot be decoded", reason="undecodable frame")
                continue
            rng = np.random.default_rng(list(clip.clip_id.encode()))
            pixels = rng.integers(0, 255, (FRAMES, 6, 8, 3), dtype=np.uint8)
            seconds = np.arange(FRAMES, dtype=np.float64)
            yield clip, DecodedClip(pixels, seconds, np.ones(FRAMES, bool), "pyav", seconds)

    return decode


def encode(job: EncodeJob, *, model: Any = None, decode: Any = None, on_event: Any = None) -> list[Event]:
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if on_event is not None:
            on_event(event)

    busy, _ = ShardEncoder(job, lambda: model or Projection(), decode or decoder(), lambda: None, note).run(tasks())
    assert busy == []
    return events


def files(job: EncodeJob) -> dict[str, bytes]:
    return tree(Path(str(job.cache)))


@pytest.mark.parametrize("slow", ["decode", "encode", "store"])
def test_the_bytes_do_not_depend_on_which_stage_is_slow(job: EncodeJob, slow: str, tmp_path: Path) -> None:
    encode(job)
    expected = files(job)
    for file in expected:
        (tmp_path / "cache" / file).unlink()
    model = Projection(slow_s=0.01 if slow == "encode" else 0.0)
    pause: Any = (lambda event: time.sleep(0.004)) if slow == "store" else None
    events = encode(job, model=model, decode=decoder(0.003 if slow == "decode" else 0.0), on_event=pause)
    assert files(job) == expected and len(expected) == 3 * 4  # tar, idx, failures and commit of three shards
    assert model.batches == [4, 3, 2] * 3, "a failed clip shrinks its own batch only; no batch spans two shards"
    told = [type(event) for event in events]
    assert [told.count(kind) for kind in (ClipDone, ClipFailed, ShardCommitted)] == [27, 3, 3]


def test_the_first_clips_are_decoded_while_the_encoder_is_loaded(job: EncodeJob) -> None:
    decoded = threading.Event()

    def decode(clips: Iterable[PlannedClip]) -> Iterator[Decoded]:
        for found in decoder()(clips):
            decoded.set()
            yield found

    def load() -> Any:
        assert decoded.wait(60)
        return Projection()

    ShardEncoder(job, load, decode, lambda: None, lambda event: None).run(tasks())
    assert len(files(job)) == 3 * 4


def test_an_encoder_that_cannot_be_loaded_ends_all_stages(job: EncodeJob) -> None:
    def load() -> Any:
        raise SpecMismatch("another encoder")

    before = threading.active_count()
    with pytest.raises(SpecMismatch, match="another encoder"):
        ShardEncoder(job, load, decoder(), lambda: None, lambda event: None).run(tasks())
    assert threading.active_count() == before and files(job) == {}


@pytest.mark.parametrize("failing", ["decode", "encode", "store", "commit"])
def test_an_error_ends_the_other_stages_and_leaves_nothing_claimed(
    job: EncodeJob, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the other stages would otherwise wait for ever."""

    def decode(clips: Iterable[PlannedClip]) -> Iterator[Decoded]:
        for number, found in enumerate(decoder()(clips)):
            if number == 13:
                raise CacheError("failed on purpose")
            yield found

    def on_event(event: Event) -> None:
        if failing == "store" and isinstance(event, ClipDone) and event.clip_id == "v1x2-0":
            raise CacheError("failed on purpose")
        if failing == "commit" and isinstance(event, ShardCommitted):
            raise CacheError("failed on purpose")

    model = Projection()
    if failing == "encode":
        monkeypatch.setattr(model, "map", model.map[:2])
    expected = RuntimeError if failing == "encode" else CacheError
    before = threading.active_count()
    with pytest.raises(expected):
        encode(job, model=model, decode=decode if failing == "decode" else None, on_event=on_event)
    assert threading.active_count() == before
    assert not [name for name in files(job) if name.endswith(".tmp")]
    with LocalStore(Path(str(job.cache))).lock("shards/train-000001.tar", wait=False) as free:
        assert free


def test_a_full_disk_ends_all_stages_with_its_own_words(job: EncodeJob) -> None:
    """A real limit of the system on the size of files, below that of a shard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(CacheError, match="the file would exceed the allowed file size"):
            encode(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert files(job) == {}
