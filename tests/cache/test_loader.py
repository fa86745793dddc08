"""The loader's ring: what a batch holds and for how long, what damage does, and that no thread outlives its use."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from small_cache import D, T, make_cache
from torch.utils.data import DataLoader

from flcache.batch import LatentBatch
from flcache.cache import LatentCache, LatentLoader
from flcache.cache.read.ring import BatchBuffer, _Crew, _Request
from flcache.encoder.torchvision_ops import ensure_torchvision
from flcache.errors import CacheError, DamagedError


@pytest.fixture
def cache(tmp_path: Path) -> LatentCache:
    return LatentCache(make_cache(tmp_path / "cache"), "train")


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("flcache-read")]


def flip_payload(cache: LatentCache, index: int, step: int = 0) -> str:
    """Change one byte of a step of clip number `index`; returns the name of its tar."""
    shard, row = cache.locate(index)
    path = cache.path / "shards" / f"{cache.commits[shard].name}.tar"
    place = cache.reader(shard).rows["payloads"][row, 0]
    offset = int(place["offset"]) + step * int(place["bytes"]) // T
    with path.open("r+b") as tar:
        tar.seek(offset)
        byte = tar.read(1)[0]
        tar.seek(offset)
        tar.write(bytes([byte ^ 1]))
    return path.name


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("codec", ["float16", "float32"])
def test_copies_are_the_clips(tmp_path: Path, codec: str, threads: int) -> None:
    cache = LatentCache(make_cache(tmp_path, codec=codec), "train")
    options = {"shuffle": False, "standardise": False, "drop_last": False, "threads": threads, "copy": True}
    batches = list(LatentLoader(cache, batch_size=4, context_steps=2, **options))
    assert torch.equal(
        torch.cat([batch.latents for batch in batches]), torch.stack([torch.from_numpy(c.latents) for c in cache])
    )
    assert batches[0].latents.dtype == getattr(torch, codec)


@pytest.mark.parametrize("standardise", [True, False])
def test_batch_is_valid_until_the_next_is_asked_for(cache: LatentCache, standardise: bool) -> None:
    options = {"batch_size": 2, "context_steps": 2, "standardise": standardise}
    kept = [batch.latents for batch in LatentLoader(cache, copy=True, **options)]
    assert len({latents.data_ptr() for latents in kept}) == len(kept)
    loader, places = LatentLoader(cache, **options), set()
    for _ in range(2):
        for batch in loader:
            seen = batch.latents.clone()
            threading.Event().wait(0.002)  # the threads read on, but not into this batch
            assert torch.equal(batch.latents, seen)
            places.add(batch.latents.data_ptr())
    assert len(places) <= 4, "a ring of threads + 2 batches, also in the next epoch"


def test_two_iterations_at_once_do_not_share_buffers(cache: LatentCache) -> None:
    loader = LatentLoader(cache, batch_size=2, context_steps=2)
    first, second = iter(loader), iter(loader)
    one, other = next(first), next(second)
    assert one.ids != other.ids and one.latents.data_ptr() != other.latents.data_ptr()
    first.close(), second.close()


def test_buffers_lie_on_pages(cache: LatentCache) -> None:
    loader = LatentLoader(cache, batch_size=2, context_steps=2, standardise=False)
    assert all(batch.latents.data_ptr() % 4096 == 0 for batch in loader)


@pytest.mark.parametrize("whole_codec", ["float16", "float32"])
def test_some_steps_are_a_slice(tmp_path: Path, whole_codec: str) -> None:
    cache = LatentCache(make_cache(tmp_path, codec=whole_codec), "train")
    whole = next(iter(LatentLoader(cache, batch_size=4, context_steps=2)))
    for start in range(T):
        for stop in range(start + 2, T + 1):
            for verify in ("always", "off"):
                loader = LatentLoader(cache, batch_size=4, context_steps=1, steps=(start, stop), verify=verify)
                part = next(iter(loader))
                assert torch.equal(part.latents, whole.latents[:, start:stop])
                assert torch.equal(part.times, whole.times[:, start:stop])
                assert torch.equal(part.valid, whole.valid[:, start:stop])


def test_damage_is_named(cache: LatentCache) -> None:
    tar = flip_payload(cache, 7)
    clip = cache.clip_id(7)
    for verify in ("always", "first_epoch"):
        loader = LatentLoader(cache, batch_size=4, context_steps=2, verify=verify)
        with pytest.raises(DamagedError, match=rf'clip {clip}: .*{tar}.*"flcache repair {cache.path} --config C"'):
            list(loader)
        assert not reading_threads()
    with pytest.raises(DamagedError, match=clip):
        cache[7]
    assert sum(1 for _ in LatentLoader(cache, batch_size=4, context_steps=2, verify="off")) == 5


def test_damage_beside_the_steps_read_is_noticed_where_clips_are_checked(cache: LatentCache) -> None:
    flip_payload(cache, 7, step=3)
    options = {"batch_size": 4, "context_steps": 1, "steps": (0, 2)}
    with pytest.raises(DamagedError):
        list(LatentLoader(cache, **options))
    assert len(list(LatentLoader(cache, verify="off", **options))) == 5


def test_first_epoch_checks_every_clip_once(cache: LatentCache) -> None:
    first_epoch, always = (
        LatentLoader(cache, batch_size=2, context_steps=2, drop_last=False, verify=verify)
        for verify in ("first_epoch", "always")
    )
    list(first_epoch), list(always)
    flip_payload(cache, 7)
    assert len(list(first_epoch)) == 11
    with pytest.raises(DamagedError):
        list(always)


def test_idx_that_was_not_committed_is_damage(cache: LatentCache) -> None:
    path = cache.path / "shards" / "train-000001.idx"
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 8]) + whole[position + 1 :])
        with pytest.raises(DamagedError, match=r"train-000001\.idx"):
            list(LatentLoader(cache.split("train"), batch_size=2, context_steps=2, verify="off", drop_last=False))


def test_tar_that_ends_early_is_damage_of_a_clip(cache: LatentCache) -> None:
    loader = LatentLoader(cache, batch_size=4, context_steps=2, shuffle=False)
    assert cache[0].clip_id == cache.clip_id(0)
    with (cache.path / "shards" / "train-000000.tar").open("r+b") as tar:
        tar.truncate(100)
    with pytest.raises(DamagedError, match=rf"clip {cache.clip_id(0)}: .*train-000000\.tar: ends in the middle"):
        next(iter(loader))


def test_no_thread_outlives_its_iteration(cache: LatentCache) -> None:
    loader = LatentLoader(cache, batch_size=2, context_steps=2)
    list(loader)
    assert not reading_threads()
    for _ in loader:
        break
    assert not reading_threads()
    iterator = iter(loader)
    next(iterator)
    assert reading_threads()
    del iterator
    assert not reading_threads()


def test_interrupt_ends_the_process(cache: LatentCache) -> None:
    program = (
        "import sys, time; from flcache.cache import LatentCache, LatentLoader\n"
        "loader = LatentLoader(LatentCache(sys.argv[1], 'train'), batch_size=2, context_steps=2)\n"
        "for batch in loader:\n"
        "    print(batch.ids, flush=True)\n"
        "    while True: time.sleep(0.05)\n"  # a signal just before a long sleep would be heeded after it
    )
    command = [sys.executable, "-c", program, str(cache.path)]
    with subprocess.Popen(command, stdout=-1, stderr=-1) as process:
        assert process.stdout and process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode != 0 and errors.decode().splitlines()[-1] == "KeyboardInterrupt"


ENDINGS = {
    "batches = iter(loader); next(batches)": 0,
    "def go():\n    batches = iter(loader); next(batches); raise RuntimeError('stop')\ngo()": 1,
    "def go():\n    batches = iter(loader); next(batches); raise KeyboardInterrupt\ngo()": -signal.SIGINT,
}


def test_an_iterator_that_is_left_open_does_not_keep_the_process(cache: LatentCache, tmp_path: Path) -> None:
    """Each ending in a process of its own, forked from one that has imported everything and has no thread yet."""
    program = (
        "import os, sys, flcache.cache.read.loader; from flcache.cache import LatentCache, LatentLoader\n"
        "cache_dir, folder, *endings = sys.argv[1:]\n"
        "for number, ending in enumerate(endings):\n"
        "    if not (child := os.fork()):\n"
        "        os.dup2(os.open(f'{folder}/{number}', os.O_CREAT | os.O_WRONLY), 2)\n"
        "        loader = LatentLoader(LatentCache(cache_dir, 'train'), batch_size=2, context_steps=2)\n"
        "        exec(ending)\n"
        "        break\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(cache.path), str(tmp_path), *ENDINGS]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert list(map(int, result.stdout.split())) == list(ENDINGS.values())
    for number, status in enumerate(ENDINGS.values()):
        errors = (tmp_path / str(number)).read_text()
        assert "terminate" not in errors and errors.count("Traceback") == (status != 0), errors


def test_more_shards_than_may_be_open_are_read_by_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flcache.cache.read.cache.MAX_OPEN_SHARDS", 3)
    cache = LatentCache(make_cache(tmp_path / "cache", num_train=120), "train")
    assert len(cache.commits) > 10
    expected = {clip.clip_id: torch.from_numpy(clip.latents) for clip in cache}
    for seed in range(5):
        loader = LatentLoader(cache, batch_size=4, context_steps=2, seed=seed, threads=8, standardise=False)
        for batch in loader:
            for clip_id, latents in zip(batch.ids, batch.latents, strict=True):
                assert torch.equal(latents, expected[clip_id])
    assert len(cache._readers) == 3


def test_a_thread_that_reads_may_be_the_one_that_collects_the_iterator() -> None:
    """Garbage is collected in whatever thread is running: it must not wait for itself."""
    dismissed: SimpleQueue[bool] = SimpleQueue()

    def read(item: int, buffer: BatchBuffer) -> None:
        crew.dismiss()
        dismissed.put(True)

    crew = _Crew(2, read)
    crew.give(_Request(0, BatchBuffer((), (), (), None)))
    assert dismissed.get(timeout=10)
    deadline = time.monotonic() + 10
    while reading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reading_threads()


def test_torch_may_wrap_it(cache: LatentCache) -> None:
    loader = LatentLoader(cache, batch_size=2, context_steps=2)
    plain = [batch.ids for batch in LatentLoader(cache, batch_size=2, context_steps=2)]
    assert [batch.ids for batch in DataLoader(loader, batch_size=None)] == plain
    with pytest.raises(CacheError, match="num_workers=0"):
        list(DataLoader(loader, batch_size=None, num_workers=1))


def test_a_slow_consumer_holds_the_threads_back(cache: LatentCache) -> None:
    """Back-pressure: with nobody asking, the ring is filled and no more."""
    loader = LatentLoader(cache, batch_size=1, context_steps=2)
    iterator = iter(loader)
    next(iterator)
    threading.Event().wait(0.1)
    assert np.count_nonzero(loader._clips._checked) == 4
    iterator.close()


def test_bad_options_are_refused(cache: LatentCache) -> None:
    for options in ({"threads": 0}, {"verify": "sometimes"}, {"steps": (0, 9)}, {"shuffle_block": 0}):
        with pytest.raises(CacheError):
            LatentLoader(cache, batch_size=2, context_steps=1, **options)


def test_shuffle_block_reads_neighbours_together(cache: LatentCache) -> None:
    loader = LatentLoader(cache, batch_size=1, context_steps=2, shuffle_block=5)
    numbers = {clip_id: number for number, clip_id in enumerate(cache.ids)}
    runs = [numbers[batch.ids[0]] // 5 for batch in loader]
    assert np.count_nonzero(np.diff(runs)) == 4
    state = json.loads(json.dumps(loader.state_dict()))
    other = LatentLoader(cache, batch_size=1, context_steps=2)
    other.load_state_dict(state)
    assert [b.ids for b in islice(other, 5)] == [b.ids for b in islice(loader, 5)]


def test_memory_does_not_grow_with_the_cache(tmp_path: Path) -> None:
    """Peak memory of two epochs, and of two more over ten times the clips, in a process of its own."""
    program = (
        "import sys; from pathlib import Path; from flcache.cache import LatentCache, LatentLoader\n"
        "for cache_dir in sys.argv[1:]:\n"
        "    loader = LatentLoader(LatentCache(cache_dir, 'train'), batch_size=8, context_steps=2)\n"
        "    for _ in range(2):\n"
        "        for batch in loader: batch.latents.sum()\n"
        "    print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    shape = (4, 8, 8, 64)
    caches = [make_cache(tmp_path / str(number), num_train=number, num_val=1, shape=shape) for number in (30, 300)]
    result = subprocess.run([sys.executable, "-c", program, *caches], capture_output=True, text=True, check=True)
    small, large = map(int, result.stdout.split())
    assert large < 1.05 * small, f"{small} kB, {large} kB"


def test_accelerate_leaves_it_as_it_is(cache: LatentCache) -> None:
    from accelerate import Accelerator

    loader = LatentLoader(cache, batch_size=2, context_steps=2)
    assert Accelerator(cpu=True).prepare(loader) is loader


@pytest.mark.filterwarnings("ignore:::lightning")
@pytest.mark.filterwarnings("ignore:::torchmetrics")
def test_lightning_reads_what_a_plain_loop_reads(cache: LatentCache) -> None:
    ensure_torchvision()  # torchmetrics imports it
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.map = torch.nn.Linear(D, D)
            self.seen: list[tuple[tuple[str, ...], float]] = []

        def training_step(self, batch: LatentBatch, batch_idx: int) -> torch.Tensor:
            self.seen.append((batch.ids, batch.latents.sum().item()))
            loss: torch.Tensor = (self.map(batch.context).mean(1) - batch.target.mean(1)).square().mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    module, loader = Module(), LatentLoader(cache, batch_size=3, context_steps=2)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, **quiet).fit(module, loader)
    plain = LatentLoader(cache, batch_size=3, context_steps=2)
    assert module.seen == [(batch.ids, batch.latents.sum().item()) for _ in range(3) for batch in plain]
    assert loader.state_dict() == plain.state_dict()
