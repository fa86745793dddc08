"""The probe of positions: it finds what is there to be read, and nothing in noise."""

from __future__ import annotations

import pytest
import torch
from positions import Samples, centres, probe_error

from flcache.videos.synthetic import shape_centres

STEPS = 4


def samples(split: str, videos: int, noise: float) -> Samples:
    """A linear image of the places among 30 numbers, with `noise`."""
    places = centres([f"{split[0]}{index:06d}abcd-1" for index in range(videos)], 8, STEPS)
    mixing = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(videos)
    return Samples(places @ mixing + noise * torch.randn(videos, STEPS, 30, generator=generator), places)


def test_centres_are_means_over_the_frames_of_a_step() -> None:
    whole = torch.from_numpy(shape_centres("val", 3)) / 64
    expected = whole[8:16].reshape(4, 2, 2).mean(1)
    assert torch.equal(centres(["v000003abcd-1"], 8, STEPS)[0], expected)
    assert torch.equal(centres(["v000003abcd-0"], 32, 16)[0], whole.reshape(16, 2, 2).mean(1))


def test_a_linear_image_is_read_and_noise_costs_what_the_mean_does() -> None:
    train, test = samples("train", 60, 0.0), samples("val", 40, 0.0)
    assert probe_error(train, test) < 0.001
    blind = [Samples(torch.randn_like(each.inputs), each.places) for each in (train, test)]
    mean = float((test.places - train.places.mean((0, 1))).norm(dim=-1).mean())
    assert probe_error(*blind) == pytest.approx(mean, rel=0.1)
    assert 0.001 < probe_error(samples("train", 60, 0.3), samples("val", 40, 0.3)) < 0.8 * mean
