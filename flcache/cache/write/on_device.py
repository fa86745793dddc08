"""Preparing clips on the device of their latents, so that half the bytes come back and the CPU only writes them.

For codecs whose one payload is the latents in a float type. The same device gives the same bytes; another may round
sums differently in their last bits. B clips, T steps, D channels, N latent vectors of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flcache.cache.codecs.fidelity import from_products
from flcache.cache.format.spec import CacheSpec
from flcache.cache.write.prepared import PreparedClip, prepare


@dataclass(frozen=True)
class CastLatents:
    """B clips, cast and measured; on the device, or on the way back."""

    payload: Tensor
    """(B, T, H, W, D) in the stored type."""
    products: Tensor
    """(B, 3, N) float64, as `fidelity.from_products` takes them."""
    sums: Tensor
    """(B, T, 2, D) float64, as `PreparedClip.sums`."""

    def tensors(self) -> tuple[Tensor, ...]:
        return self.payload, self.products, self.sums


def can_cast(spec: CacheSpec) -> bool:
    """Whether clips of a cache of `spec` can be prepared on a device."""
    return spec.codec.stores_latents and spec.reduction is None


def cast_on_device(spec: CacheSpec, latents: Tensor) -> CastLatents:
    """Latents (B, T, H, W, D), float32. Nothing waits for the device."""
    (layout,) = spec.codec.payloads(spec.latent_shape)
    payload = latents.to(getattr(torch, layout.dtype.name))
    stored = payload.float()
    error = stored - latents
    pairs = ((latents, latents), (latents, error), (error, error))
    products = torch.stack([(left * right).sum(-1, dtype=torch.float64).flatten(1) for left, right in pairs], dim=1)
    vectors = stored.double().flatten(2, 3)  # (B, T, H * W, D)
    return CastLatents(payload, products, torch.stack([vectors.sum(2), vectors.square().sum(2)], dim=2))


def prepared_clip(spec: CacheSpec, cast: CastLatents, latents: Tensor, clip: int, valid_steps: int) -> PreparedClip:
    """Clip number `clip` of `cast`, which is on the CPU by now; `latents` (B, T, H, W, D) are still on the device.

    Raises ValueRangeError as `prepare` does.
    """
    if not torch.isfinite(cast.sums[clip]).all():
        return prepare(spec, latents[clip].cpu().numpy(), valid_steps)
    fidelity = from_products(cast.products[clip].numpy())
    return PreparedClip([cast.payload[clip].numpy()], fidelity, None, cast.sums[clip, :valid_steps].numpy())
