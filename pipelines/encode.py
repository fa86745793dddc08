"""flcache encode --config CONFIG [KEY=VALUE ...]: videos in, a cache of latents out.

Safe to kill and to run again: committed shards are never touched, all others are encoded anew.
"""

from __future__ import annotations

from flcache.config import Config
from flcache.errors import ConfigError

from .setup.cache import cache_store
from .setup.encoding import encode_missing, report_encoding
from .setup.engine import LOCAL, Engine
from .setup.planning import begin_planning


def run(
    config: Config,
    shards: tuple[int, int] | None = None,
    *,
    retry_failed: bool = False,
    engine: Engine = LOCAL,
) -> None:
    """Encode the shards without a commit; with `shards=(i, n)` only part i of n, counted from 0.

    With `retry_failed` also clips that failed, where the reason may have gone. Raises ConfigError for a configuration
    that augments.
    """
    if config.training.augment:
        raise ConfigError(
            "training.augment: a cache keeps one form of each clip, so every epoch would see one crop; encode with "
            "training.augment.crop=1 training.augment.flip=false, or train with training.source=videos"
        )
    cache = cache_store(config)
    planning = begin_planning(cache, config)
    encode_missing(cache, config, planning, shards, retry_failed=retry_failed, engine=engine)
    report_encoding(cache, config)
