"""The order of an epoch and the position of a run in it, for cached and for live training alike."""

from flcache.sampling.order import epoch_order, mixture_order, rank_share
from flcache.sampling.sampler import EpochSampler

__all__ = ["EpochSampler", "epoch_order", "mixture_order", "rank_share"]
