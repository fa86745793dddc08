"""Clips that are cast and measured on their device are those that the CPU would have stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flcache.cache import CacheSpec, ValueRangeError, make_spec, prepare
from flcache.cache.write.on_device import can_cast, cast_on_device, prepared_clip

SHAPE = (3, 4, 5, 16)


def spec_of(codec: str) -> CacheSpec:
    context = {"mode": "step", "seen_until": [0, 1, 2]}
    return make_spec({"encoder": "noise", "layout": {"shape": list(SHAPE)}, "context": context, "codec": codec})


@pytest.mark.parametrize("codec", ["float16", "float32"])
@pytest.mark.parametrize("valid_steps", [3, 2])
def test_the_same_payload_and_the_same_figures(codec: str, valid_steps: int) -> None:
    latents = torch.from_numpy(np.random.default_rng(0).normal(1, 30, (2, *SHAPE)).astype(np.float32))
    latents[1, 0, 0, 0] = 0  # a vector of zeros
    spec = spec_of(codec)
    assert can_cast(spec)
    cast = cast_on_device(spec, latents)
    for number in range(2):
        found = prepared_clip(spec, cast, latents, number, valid_steps)
        expected = prepare(spec, latents[number].numpy(), valid_steps)
        assert [payload.tobytes() for payload in found.payloads] == [payload.tobytes() for payload in expected.payloads]
        np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-12)
        for name, value in vars(expected.fidelity).items():
            assert getattr(found.fidelity, name) == pytest.approx(value, rel=1e-4, abs=1e-9), name


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "not finite"), (np.inf, "not finite"), (70_000.0, "out of range")]
)
def test_what_cannot_be_stored_is_refused_as_on_the_cpu(value: float, reason: str) -> None:
    latents = torch.zeros(1, *SHAPE)
    latents[0, 1, 2, 3, 4] = value
    spec = spec_of("float16")
    with pytest.raises(ValueRangeError, match=r"step 1, channel 4") as raised:
        prepared_clip(spec, cast_on_device(spec, latents), latents, 0, 3)
    assert raised.value.reason == reason


def test_other_codecs_are_left_to_the_cpu() -> None:
    assert not can_cast(spec_of("bfloat16"))
