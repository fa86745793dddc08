"""Latents on disk, format `flc1`: plan, spec, shards, commits, and reading them back."""

from typing import TYPE_CHECKING

from flcache.lazy import load_on_demand

if TYPE_CHECKING:
    from flcache.cache.check.retry import RetryWriter, settle
    from flcache.cache.check.summary import FailureGroup, failure_groups, summary
    from flcache.cache.check.verify import Damage, Verification, verify_cache
    from flcache.cache.codecs.protocol import Codec, PayloadLayout, ValueRangeError, check_held
    from flcache.cache.codecs.reduction import reduced_shape, reduction_fields
    from flcache.cache.codecs.registry import CODECS, get_codec, register_codec
    from flcache.cache.format.commit import (
        Commit,
        Failure,
        committed_shards,
        is_committed,
        read_commits,
        read_failures,
        stage_of,
    )
    from flcache.cache.format.plan import add_to_plan, assign_shards, check_clip_ids, plan_sources, write_plan
    from flcache.cache.format.plan_table import PlanTable, read_plan
    from flcache.cache.format.spec import (
        FORMAT,
        CacheSpec,
        create_or_check,
        differences,
        latent_differences,
        make_spec,
        read_spec,
        with_calibration,
        without_times,
    )
    from flcache.cache.format.statistics import TRAINING_SPLIT, ChannelSums, channel_statistics, finalize_statistics
    from flcache.cache.options import CacheOptions, ReductionOptions
    from flcache.cache.read.arrays import array_statistics, statistics_of
    from flcache.cache.read.as_webdataset import as_webdataset
    from flcache.cache.read.cache import CachedClip, LatentCache, SplitProgress
    from flcache.cache.read.loader import LatentLoader
    from flcache.cache.read.mixture import Mixture
    from flcache.cache.write.calibration import CODEC_CALIBRATION_CLIPS, Calibrator, is_calibrated
    from flcache.cache.write.importing import LatentFiles, ManifestRow, read_latents, read_manifest
    from flcache.cache.write.prepared import PreparedClip, prepare
    from flcache.cache.write.shard import EncodedClip, ShardBusy, ShardWriter, remove_shard_leftovers
    from flcache.cache.write.writer import CacheWriter, ClipInfo
    from flcache.sampling.order import epoch_order, mixture_order, rank_share
    from flcache.sampling.sampler import EpochSampler
else:
    __getattr__ = load_on_demand(__name__, __file__)

__all__ = [
    "CODECS",
    "CODEC_CALIBRATION_CLIPS",
    "FORMAT",
    "TRAINING_SPLIT",
    "CacheOptions",
    "CacheSpec",
    "CacheWriter",
    "CachedClip",
    "Calibrator",
    "ChannelSums",
    "ClipInfo",
    "Codec",
    "Commit",
    "Damage",
    "EncodedClip",
    "EpochSampler",
    "Failure",
    "FailureGroup",
    "LatentCache",
    "LatentFiles",
    "LatentLoader",
    "ManifestRow",
    "Mixture",
    "PayloadLayout",
    "PlanTable",
    "PreparedClip",
    "ReductionOptions",
    "RetryWriter",
    "ShardBusy",
    "ShardWriter",
    "SplitProgress",
    "ValueRangeError",
    "Verification",
    "add_to_plan",
    "array_statistics",
    "as_webdataset",
    "assign_shards",
    "channel_statistics",
    "check_clip_ids",
    "check_held",
    "committed_shards",
    "create_or_check",
    "differences",
    "epoch_order",
    "failure_groups",
    "finalize_statistics",
    "get_codec",
    "is_calibrated",
    "is_committed",
    "latent_differences",
    "make_spec",
    "mixture_order",
    "plan_sources",
    "prepare",
    "rank_share",
    "read_commits",
    "read_failures",
    "read_latents",
    "read_manifest",
    "read_plan",
    "read_spec",
    "reduced_shape",
    "reduction_fields",
    "register_codec",
    "remove_shard_leftovers",
    "settle",
    "stage_of",
    "statistics_of",
    "summary",
    "verify_cache",
    "with_calibration",
    "without_times",
    "write_plan",
]
