"""flcache audit DIR --config CONFIG [--clips N] [--json] [KEY=VALUE ...]: are the cached latents what they claim to be?

Encodes a sample of clips again and compares them with the cache; then changes every frame after a boundary and checks
whether the context latents change. Only reads the cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flcache.cache import CacheSpec, LatentCache, latent_differences, make_spec, with_calibration
from flcache.cache.storage import Location
from flcache.config import Config
from flcache.encoder import LatentVideoModel, change_future, distance
from flcache.errors import CacheError, DataError, DecodeError, LeakError, SpecMismatch
from flcache.leak import legal_boundaries, middle_boundary
from flcache.videos import DecodedClip, PlannedClip, VideoFolder, decode_planned, planned_clips

from .setup.arrays import array_widths
from .setup.cache import cache_store
from .setup.clips import open_pool, video_root
from .setup.encoder import hard_spec, load_configured_encoder

TOLERANCE = 0.02
"""Distance to the cache above which latents are not the encoder's; other devices and library versions give far less."""


@dataclass(frozen=True)
class AuditedClip:
    """Distances as `flcache.encoder.distance` measures them."""

    clip_id: str
    from_cache: float
    """From the cached latents to those of the same clip encoded now."""
    context_moved: float
    targets_moved: float


@dataclass(frozen=True)
class Audit:
    """What was found of all clips, with one `boundary` for all."""

    cache: LatentCache
    boundary: int
    clips: tuple[AuditedClip, ...]
    undecodable: tuple[str, ...]

    @property
    def legal(self) -> bool:
        """Whether the cache says that a context before `boundary` has not seen the rest."""
        return self.boundary in legal_boundaries(self.cache.seen_until)

    @property
    def mode(self) -> str:
        return str(self.cache.spec.hard["context"]["mode"])

    @property
    def furthest(self) -> AuditedClip:
        """The clip that is furthest from the cache."""
        return max(self.clips, key=lambda clip: clip.from_cache)

    @property
    def moved(self) -> list[AuditedClip]:
        """Clips whose context moved with the future, in order of decreasing distance."""
        return sorted((clip for clip in self.clips if clip.context_moved != 0), key=lambda clip: -clip.context_moved)

    @property
    def targets_moved(self) -> float:
        """The least distance that the targets of a clip moved."""
        return min(clip.targets_moved for clip in self.clips)


def run(directory: Location, config: Config, clips: int, as_json: bool = False) -> None:
    """Audit `clips` clips of the cache at `directory`, evenly spread over all its splits.

    Raises DataError if it has none, SpecMismatch if the configuration makes other latents, CacheError if those in it
    are not those that are encoded now, LeakError if a context moves that the cache says has not seen the future.
    """
    cache = LatentCache(cache_store(config, directory))
    if not len(cache):
        raise DataError(
            f'{cache.store}: holds no clips to audit; see "flcache inspect-cache {cache.store}" for what failed'
        )
    model = load_configured_encoder(config, device=config.encode.device)
    _check_spec(cache, config, model)
    audit = _audit(cache, config, model, clips)
    error = _verdict(audit)
    print(json.dumps(_to_json(audit, ok=error is None)) if as_json else _describe(audit))
    if error:
        raise error


def _check_spec(cache: LatentCache, config: Config, model: LatentVideoModel) -> None:
    wanted = make_spec(with_calibration(hard_spec(config, model, array_widths(config)), cache.spec))
    if different := latent_differences(cache.spec, wanted):
        raise SpecMismatch(
            f"{cache.store}: the configuration does not make these latents: {'; '.join(different)}; name the "
            f"configuration that the cache was encoded with"
        )


def _audit(cache: LatentCache, config: Config, model: LatentVideoModel, num_clips: int) -> Audit:
    boundary = config.training.context_steps or middle_boundary(cache.seen_until)
    indices = np.linspace(0, len(cache) - 1, min(len(cache), num_clips)).astype(int).tolist()
    audited, undecodable = [], []
    for index, (clip, decoded) in zip(indices, _decode(cache, config, indices), strict=True):
        if isinstance(decoded, DecodeError):
            undecodable.append(f"{clip.clip_id}: {decoded}")
            continue
        latents, *moved = change_future(model, torch.from_numpy(decoded.frames), boundary)
        stored = _as_stored(cache.spec, latents.cpu())
        audited.append(AuditedClip(clip.clip_id, distance(_float(cache[index].latents), stored), *moved))
    if not audited:
        raise DataError(
            f"{cache.store}: no clip of {num_clips} could be decoded to compare it, {undecodable[:1]}; check "
            f"dataset.root={config.dataset.root}"
        )
    return Audit(cache, boundary, tuple(audited), tuple(undecodable))


def _decode(
    cache: LatentCache, config: Config, indices: Sequence[int]
) -> Iterator[tuple[PlannedClip, DecodedClip | DecodeError]]:
    """The clips at `indices`, decoded or failed."""
    folder = VideoFolder(video_root(config))
    with open_pool(config) as pool:
        yield from decode_planned(pool, folder, planned_clips(cache.planned(indices)))


def _as_stored(spec: CacheSpec, latents: Tensor) -> Tensor:
    """Latents (T, H, W, D) as read from a cache, so that the codec's loss of precision does not count as distance."""
    return _float(spec.codec.decode(spec.codec.encode(spec.reduce(latents.numpy()))))


def _float(latents: Any) -> Tensor:
    return torch.from_numpy(np.asarray(latents, dtype=np.float32))


def _verdict(audit: Audit) -> CacheError | LeakError | None:
    """The error to raise; None if cache and contexts are sound."""
    path, furthest, moved = audit.cache.store, audit.furthest, audit.moved
    if not furthest.from_cache <= TOLERANCE:
        return CacheError(
            f"{path}: clip {furthest.clip_id} is {furthest.from_cache:.1%} of its RMS away from what the encoder gives "
            f'now; run "flcache verify {path}" to see whether its bytes are whole, and look for changed videos or '
            f"library versions"
        )
    if audit.legal and moved:
        return LeakError(
            f"{path}: the context of clip {moved[0].clip_id} moved by {moved[0].context_moved:.2%} of its RMS when "
            f"only frames from step {audit.boundary} on changed, though the cache says it has not seen them: do not "
            f"train on it"
        )
    return None


def _to_json(audit: Audit, *, ok: bool) -> dict[str, Any]:
    return {
        "ok": ok,
        "fingerprint": audit.cache.fingerprint,
        "context": audit.mode,
        "boundary": audit.boundary,
        "legal": audit.legal,
        "clips": len(audit.clips),
        "undecodable": list(audit.undecodable),
        "distance_to_cache": audit.furthest.from_cache,
        "contexts_bit_identical": len(audit.clips) - len(audit.moved),
        "contexts_moved_by": max(clip.context_moved for clip in audit.clips),
        "targets_moved_by": audit.targets_moved,
    }


def _describe(audit: Audit) -> str:
    count, moved = len(audit.clips), audit.moved
    lines = [
        f"{audit.cache.store}: {count} clips encoded again; the furthest is {audit.furthest.from_cache:.3%} of its RMS "
        f"away from the cache ({audit.furthest.clip_id})",
        f"every pixel from step {audit.boundary} on changed: the targets moved by at least {audit.targets_moved:.1%}",
    ]
    if moved:
        why = "though it must not" if audit.legal else f'as "{audit.mode}" lets it: it has seen the future'
        lines.append(
            f"the context moved in {len(moved)} of {count} clips, by up to {moved[0].context_moved:.2%}, {why}"
        )
    else:
        lines.append(f"the context of {audit.boundary} steps is bit-identical in all {count} clips: no leak")
    return "\n".join([*lines, *(f"not audited: {reason}" for reason in audit.undecodable)])
