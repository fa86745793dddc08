"""flcache audit DIR --config CONFIG [--clips N] [--json] [KEY=VALUE ...]: are the cached latents what they claim to be?

Re-encodes a sample of clips and compares them with the cache; then changes every frame after a boundary and checks
whether the context latents change. The cache is only read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flcache.cache import CacheSpec, LatentCache, latent_differences, make_spec, read_plan, with_calibration
from flcache.config import Config
from flcache.encoder import Distance, FutureTest, LatentVideoModel, change_future, distance
from flcache.errors import CacheError, DataError, DecodeError, LeakError, SpecMismatch
from flcache.leak import legal_boundaries, middle_boundary
from flcache.videos import DecodedClip, VideoFolder, decode_planned, planned_clips

from .setup.clips import open_pool
from .setup.encoder import hard_spec, load_configured_encoder

TOLERANCE = 0.02
"""Relative distance to the cache above which latents are not the encoder's: another device or library version moves
them far less."""


@dataclass(frozen=True)
class AuditedClip:
    clip_id: str
    cached: Distance
    """Distance of the cached latents from those of the same clip encoded now."""
    future: FutureTest


@dataclass(frozen=True)
class Audit:
    """All clips of an audit, all with the same `boundary`."""

    fingerprint: str
    mode: str
    boundary: int
    legal: bool
    """Whether the cache says that a context before `boundary` has not seen the rest."""
    clips: tuple[AuditedClip, ...]
    undecodable: tuple[str, ...]

    @property
    def furthest(self) -> AuditedClip:
        """The clip that is furthest from the cache."""
        return max(self.clips, key=lambda clip: clip.cached.relative)

    @property
    def moved(self) -> list[AuditedClip]:
        """Clips whose context moved with the future."""
        return [clip for clip in self.clips if not clip.future.context.identical]

    @property
    def most_moved(self) -> float:
        """Relative movement of the context that moved most."""
        return max(clip.future.context.relative for clip in self.clips)

    @property
    def least_changed(self) -> float:
        """Relative movement of the targets that moved least."""
        return min(clip.future.targets.relative for clip in self.clips)


def run(directory: Path, config: Config, clips: int, as_json: bool = False) -> None:
    """Audit `clips` clips of the cache at `directory`, evenly spread over all its splits.

    Raises SpecMismatch if the configuration makes other latents, CacheError if the cached ones are not those that are
    encoded now, LeakError if a context moves that the cache says has not seen the future.
    """
    cache = LatentCache(directory)
    model = load_configured_encoder(config, device=config.encode.device)
    _check_spec(cache, config, model)
    audit = _audit(cache, config, model, clips)
    print(json.dumps(to_json(audit)) if as_json else _describe(directory, audit))
    _judge(directory, audit)


def to_json(audit: Audit) -> dict[str, Any]:
    """The audit as JSON values."""
    return {
        "ok": _is_sound(audit),
        "fingerprint": audit.fingerprint,
        "context": audit.mode,
        "boundary": audit.boundary,
        "legal": audit.legal,
        "clips": len(audit.clips),
        "undecodable": list(audit.undecodable),
        "distance_to_cache": audit.furthest.cached.relative,
        "contexts_bit_identical": len(audit.clips) - len(audit.moved),
        "contexts_moved_by": audit.most_moved,
        "targets_moved_by": audit.least_changed,
    }


def _check_spec(cache: LatentCache, config: Config, model: LatentVideoModel) -> None:
    wanted = make_spec(with_calibration(hard_spec(config, model), cache.spec))
    if different := latent_differences(cache.spec, wanted):
        raise SpecMismatch(
            f"{cache.path}: the configuration does not make these latents: {'; '.join(different)}; name the "
            f"configuration that the cache was encoded with"
        )


def _audit(cache: LatentCache, config: Config, model: LatentVideoModel, num_clips: int) -> Audit:
    boundary = config.training.context_steps or middle_boundary(cache.seen_until)
    audited, undecodable = [], []
    for index, decoded in _decode(cache, config, _spread(len(cache), num_clips)):
        clip = cache[index]
        if not isinstance(decoded, DecodedClip):
            undecodable.append(f"{clip.clip_id}: {decoded}")
            continue
        latents, future = change_future(model, torch.from_numpy(decoded.frames), boundary)
        cached = distance(_float(clip.latents), _as_stored(cache.spec, latents.cpu()))
        audited.append(AuditedClip(clip.clip_id, cached, future))
    if not audited:
        raise DataError(
            f"{cache.path}: no clip of {num_clips} could be decoded to compare it, {undecodable[:1]}; check "
            f"dataset.root={config.dataset.root}"
        )
    legal = boundary in legal_boundaries(cache.seen_until)
    mode = str(cache.spec.hard["context"]["mode"])
    return Audit(cache.fingerprint, mode, boundary, legal, tuple(audited), tuple(undecodable))


def _spread(total: int, wanted: int) -> list[int]:
    """`wanted` different numbers below `total`, evenly spread."""
    return sorted({int(index) for index in np.linspace(0, total - 1, min(total, wanted))})


def _decode(
    cache: LatentCache, config: Config, indices: Sequence[int]
) -> Iterator[tuple[int, DecodedClip | DecodeError]]:
    """The clips at `indices`, decoded or failed."""
    plan = read_plan(cache.path).set_index(["split", "clip_id"], drop=False)
    rows = plan.loc[[(cache[index].split, cache.clip_id(index)) for index in indices]]
    folder = VideoFolder(Path(config.require("dataset.root")))
    with open_pool(config) as pool:
        decoding = decode_planned(pool, folder, planned_clips(rows))
        yield from ((index, decoded) for index, (_, decoded) in zip(indices, decoding, strict=True))


def _as_stored(spec: CacheSpec, latents: Tensor) -> Tensor:
    """What a reader would get of the encoder's latents (T, H, W, D), so that no codec is too coarse to be compared."""
    return _float(spec.codec.decode(spec.codec.encode(spec.reduce(latents.numpy()))))


def _float(latents: Any) -> Tensor:
    return torch.from_numpy(np.asarray(latents, dtype=np.float32))


def _is_sound(audit: Audit) -> bool:
    return audit.furthest.cached.relative <= TOLERANCE and not (audit.legal and audit.moved)


def _judge(directory: Path, audit: Audit) -> None:
    """Raise the error that an unsound audit calls for."""
    furthest = audit.furthest
    if not furthest.cached.relative <= TOLERANCE:
        raise CacheError(
            f"{directory}: clip {furthest.clip_id} is {furthest.cached.relative:.1%} of its RMS away from what the "
            f'encoder gives now; run "flcache verify {directory}" to see whether its bytes are whole, and look for '
            f"changed videos or library versions"
        )
    if audit.legal and audit.moved:
        raise LeakError(
            f"{directory}: the context of clip {audit.moved[0].clip_id} moved by {audit.most_moved:.2%} of its RMS "
            f"when only frames from step {audit.boundary} on changed, though the cache says it has not seen them: do "
            f"not train on it"
        )


def _describe(directory: Path, audit: Audit) -> str:
    count, moved = len(audit.clips), len(audit.moved)
    lines = [
        f"{directory}: {count} clips encoded again; the furthest is {audit.furthest.cached.relative:.3%} of its RMS "
        f"away from the cache ({audit.furthest.clip_id})",
        f"every pixel from step {audit.boundary} on changed: the targets moved by at least {audit.least_changed:.1%}",
    ]
    if moved:
        word = "though it must not" if audit.legal else f'as "{audit.mode}" lets it: it has seen the future'
        lines.append(f"the context moved in {moved} of {count} clips, by up to {audit.most_moved:.2%}, {word}")
    else:
        lines.append(f"the context of {audit.boundary} steps is bit-identical in all {count} clips: no leak")
    return "\n".join([*lines, *(f"not audited: {reason}" for reason in audit.undecodable)])
