"""The order of an epoch: a pure function of (n, seed, epoch, block), the same for any number of ranks and threads.

Random numbers are the raw 64-bit output of the Philox4x64 counter generator, keyed with sha256 of seed and epoch; the
order is their stable sort. Neither depends on the version of numpy, while numpy's `permutation` may.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def epoch_order(n: int, *, seed: int, epoch: int, block: int | None = None) -> NDArray[np.int64]:
    """(n,) a permutation of `0 .. n - 1`.

    With `block`, consecutive clips are taken in blocks of that many; the blocks are shuffled, and the clips within
    each block, so that reading stays local.
    """
    generator = _generator(f"flc1/{seed}/{epoch}")
    clip_keys = np.asarray(generator.random_raw(n), dtype=np.uint64)
    if block is None:
        return np.argsort(clip_keys, kind="stable").astype(np.int64)
    block_keys = generator.random_raw(-(-n // block))
    block_rank = np.argsort(np.argsort(block_keys, kind="stable"), kind="stable")
    return np.lexsort([clip_keys, block_rank[np.arange(n) // block]]).astype(np.int64)


def mixture_order(
    parts: Sequence[tuple[int, float]], *, seed: int, epoch: int, block: int | None = None
) -> NDArray[np.int64]:
    """(n,) numbers of clips, counted over all `parts` in sequence; a part is (clips, weight), n their sum of clips.

    Every epoch takes the same number of clips from a part, its share by weight. Each part continues its own order in
    the next epoch, so that its clips are used equally often, to within one.
    """
    clips = [size for size, _ in parts]
    draws = _apportion(sum(clips), [weight for _, weight in parts])
    owner = np.repeat(np.arange(len(parts)), draws)
    owner = owner[np.argsort(_generator(f"flc1/mixture/{seed}/{epoch}").random_raw(len(owner)), kind="stable")]
    numbers = np.empty(len(owner), dtype=np.int64)
    for part, (size, drawn) in enumerate(zip(clips, draws, strict=True)):
        taken = _taken(size, drawn * epoch, drawn, seed=seed, block=block)
        numbers[owner == part] = sum(clips[:part]) + taken
    return numbers


def _taken(size: int, start: int, count: int, *, seed: int, block: int | None) -> NDArray[np.int64]:
    """(count,) clips from position `start` on in the endless sequence of epochs of `size` clips."""
    epochs = range(start // size, -(-(start + count) // size))
    orders = [epoch_order(size, seed=seed, epoch=epoch, block=block) for epoch in epochs]
    return np.concatenate([np.zeros(0, dtype=np.int64), *orders])[start % size :][:count]


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in whole shares by weight, the largest remainders rounded up."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [int(part) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda part: (shares[part] - exact[part], part))
    for part in by_remainder[: total - sum(shares)]:
        shares[part] += 1
    return shares


def _generator(name: str) -> np.random.Philox:
    return np.random.Philox(key=int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little"))


def rank_share(
    order: NDArray[np.int64], *, start: int, batch_size: int, rank: int, world_size: int, even_last: bool = True
) -> NDArray[np.int64]:
    """The share of `rank` in the global batch that starts at `start`.

    A global batch is the next `batch_size * world_size` clips of the order; the ranks' shares in sequence are that
    batch. A short last batch is shared evenly, so that a rank may get one clip less, or none. Without `even_last`, the
    first ranks get `batch_size` each as long as clips last, so that the shares are the batches of a single rank.
    """
    batch = order[start : start + batch_size * world_size]
    if not even_last:
        return batch[rank * batch_size : (rank + 1) * batch_size]
    least, longer = divmod(len(batch), world_size)
    first = rank * least + min(rank, longer)
    return batch[first : first + least + (rank < longer)]
