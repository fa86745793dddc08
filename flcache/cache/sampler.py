"""Where a run is in its data: epochs of shuffled indices, shared by ranks, resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flcache.cache.order import epoch_order, rank_share
from flcache.errors import CacheError


class EpochSampler:
    """The indices of `num_clips` clips, batch by batch, epoch after epoch.

    The position is counted in samples of all ranks together, so a state resumes at the exact sample on any number of
    ranks. `remaining` looks ahead without moving; `advance` moves over one global batch. Raises CacheError for sizes
    that give no batch.
    """

    def __init__(
        self,
        num_clips: int,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
    ) -> None:
        """`batch_size` is per rank; `drop_last` leaves out an epoch's last batch if it is short."""
        if not 0 <= rank < world_size or batch_size < 1:
            raise CacheError(f"batch size {batch_size}, rank {rank} of {world_size}: out of range")
        self.num_clips, self.batch_size, self.seed, self.shuffle = num_clips, batch_size, seed, shuffle
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.epoch, self.samples = 0, 0
        if num_clips < self._least:
            raise CacheError(
                f"{num_clips} clips are too few for one batch of {self._least}; lower training.batch_size, "
                'or run "flcache encode" to the end'
            )

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        full, rest = divmod(self.num_clips, self._global_batch)
        return full + (not self.drop_last and len(self._share(np.arange(rest), 0)) > 0)

    def remaining(self) -> Iterator[NDArray[np.int64]]:
        """This rank's indices of every batch left in the epoch; empty where a short last batch has none for it."""
        order = self._order()
        start = self.samples
        while self.num_clips - start >= self._least:
            yield self._share(order, start)
            start += self._global_batch

    def advance(self) -> None:
        """Move over one global batch, into the next epoch where this one has none left."""
        self._go_to(self.samples + self._global_batch)

    def state_dict(self) -> dict[str, int]:
        """Where the next batch starts; small, and JSON."""
        return {"seed": self.seed, "epoch": self.epoch, "samples": self.samples, "clips": self.num_clips}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken, with its seed. Raises CacheError if there are other clips now."""
        if state["clips"] != self.num_clips:
            raise CacheError(
                f"{self.num_clips} clips, {state['clips']} when the run was saved: its order cannot be continued; "
                "start anew, or bring back the clips as they were"
            )
        self.seed, self.epoch = state["seed"], state["epoch"]
        self._go_to(state["samples"])

    @property
    def _global_batch(self) -> int:
        return self.batch_size * self.world_size

    @property
    def _least(self) -> int:
        """Clips that a global batch needs."""
        return self._global_batch if self.drop_last else 1

    def _go_to(self, samples: int) -> None:
        """Be at `samples` of this epoch, or at the start of the next where these ranks have no batch left."""
        self.samples = samples
        if self.num_clips - samples < self._least:
            self.epoch, self.samples = self.epoch + 1, 0

    def _order(self) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.num_clips)
        return epoch_order(self.num_clips, seed=self.seed, epoch=self.epoch)

    def _share(self, order: NDArray[np.int64], start: int) -> NDArray[np.int64]:
        return rank_share(order, start=start, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size)
