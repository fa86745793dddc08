"""The position of a run in its data: epochs of shuffled indices, shared by ranks, resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flcache.errors import CacheError
from flcache.sampling.order import epoch_order, mixture_order, rank_share


class EpochSampler:
    """The indices of `num_clips` clips, batch by batch, epoch after epoch.

    The position counts samples of all ranks together, so a state resumes at the exact sample on any number of ranks.
    `remaining` looks ahead without moving; `advance` moves over one global batch. Raises CacheError for sizes that give
    no batch.
    """

    def __init__(
        self,
        num_clips: int,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        block: int | None = None,
        parts: Sequence[tuple[int, float]] | None = None,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        even_last: bool = True,
    ) -> None:
        """`batch_size` is per rank; `drop_last` leaves out an epoch's last batch if it is short; `even_last` is that of
        `rank_share`, `block` that of `epoch_order`. `parts` are those of `mixture_order`, which is always shuffled.
        """
        if not 0 <= rank < world_size or batch_size < 1 or (block is not None and block < 1):
            raise CacheError(f"batch size {batch_size}, rank {rank} of {world_size}, block {block}: out of range")
        self.num_clips, self.batch_size, self.seed, self.shuffle = num_clips, batch_size, seed, shuffle
        self.block, self.parts = block, tuple(parts) if parts else None
        self.rank, self.world_size, self.drop_last, self.even_last = rank, world_size, drop_last, even_last
        self.epoch, self.samples = 0, 0
        self._weights = [weight for _, weight in self.parts] if self.parts else None
        self._global_batch = batch_size * world_size
        self._least = self._global_batch if drop_last else 1
        """Clips that a global batch needs."""
        if num_clips < self._least:
            raise CacheError(
                f"{num_clips} clips are too few for one batch of {self._least}; lower training.batch_size, "
                'take more of each video (clip.clips_per_video), or run "flcache encode" to the end'
            )

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        full, rest = divmod(self.num_clips, self._global_batch)
        return full + (not self.drop_last and len(self._share(np.arange(rest), 0)) > 0)

    def remaining(self) -> Iterator[NDArray[np.int64]]:
        """This rank's indices of every batch left in the epoch; empty if the rank has no clip of a short last batch."""
        order = self._order()
        start = self.samples
        while self.num_clips - start >= self._least:
            yield self._share(order, start)
            start += self._global_batch

    def advance(self) -> None:
        """Move over one global batch, into the next epoch where this one has none left."""
        self._go_to(self.samples + self._global_batch)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts, and what decides the order; small, and JSON."""
        position = {"seed": self.seed, "epoch": self.epoch, "samples": self.samples}
        return position | {"clips": self.num_clips, "window": self.block, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, in its order. Raises CacheError if the clips are others now, or if it is
        no state of a sampler."""
        _check_state(state)
        if state["clips"] != self.num_clips:
            raise _other("clips", f"{self.num_clips} clips, {state['clips']}")
        if state.get("weights") != self._weights:
            raise _other("weights", f"weights {self._weights}, {state.get('weights')}")
        if state["samples"] >= self.num_clips:
            raise CacheError(
                f"sample {state['samples']} of {self.num_clips} clips: no position in the data; start anew"
            )
        self.seed, self.epoch, self.block = state["seed"], state["epoch"], state["window"]
        self._go_to(state["samples"])

    def _go_to(self, samples: int) -> None:
        """Move to `samples` of this epoch, or to the start of the next where no batch is left."""
        self.samples = samples
        if self.num_clips - samples < self._least:
            self.epoch, self.samples = self.epoch + 1, 0

    def _order(self) -> NDArray[np.int64]:
        if self.parts:
            return mixture_order(self.parts, seed=self.seed, epoch=self.epoch, block=self.block)
        if not self.shuffle:
            return np.arange(self.num_clips)
        return epoch_order(self.num_clips, seed=self.seed, epoch=self.epoch, block=self.block)

    def _share(self, order: NDArray[np.int64], start: int) -> NDArray[np.int64]:
        of_rank = {"rank": self.rank, "world_size": self.world_size}
        return rank_share(order, start=start, batch_size=self.batch_size, **of_rank, even_last=self.even_last)


def _other(what: str, now_and_then: str) -> CacheError:
    return CacheError(
        f"{now_and_then} when the run was saved: its order cannot be continued; start anew, or bring back the {what} "
        "as they were"
    )


def _check_state(state: dict[str, Any]) -> None:
    """Raises CacheError for a position that no sampler can be in."""
    least = {"seed": 1 - 2**63, "epoch": 0, "samples": 0, "clips": 1, "window": 1}  # `window` is the block
    for name, smallest in least.items():
        value = state.get(name)
        if name == "window" and value is None:
            continue
        if type(value) is not int or not smallest <= value < 2**63:
            raise CacheError(f"{name} {str(value)[:40]}: not a position in the data; start anew")
