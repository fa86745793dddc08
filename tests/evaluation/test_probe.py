"""Probes: they find labels that are there and none that are not, look at no padding, and repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from flcache.errors import DataError
from flcache.evaluation import Accuracy, Labelled, ProbeOptions, ProbeTest, train_probes

CLASSES, T, H, W, D = 3, 2, 4, 4, 8
OPTIONS = ProbeOptions(epochs=15, learning_rate=1e-2)
ONE_EPOCH = ProbeOptions(epochs=1, learning_rate=1e-2)


def everywhere(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Latents whose mean tells the label."""
    latents = torch.randn(len(labels), T, H, W, D, generator=torch.Generator().manual_seed(seed))
    latents[..., :CLASSES] += 2 * torch.eye(CLASSES)[labels][:, None, None, None]
    return latents


def in_one_token(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Latents of which one token of a clip, anywhere, tells the label; its pair of channels leaves the mean alone."""
    generator = torch.Generator().manual_seed(seed)
    latents = 0.3 * torch.randn(len(labels), T, H, W, D, generator=generator)
    for clip, label in enumerate(labels.tolist()):
        step, row, column = (int(torch.randint(size, (1,), generator=generator)) for size in (T, H, W))
        latents[clip, step, row, column] = 0
        latents[clip, step, row, column, 3:] = 3.0
        latents[clip, step, row, column, label] = 4.0
        latents[clip] -= latents[clip].mean((0, 1, 2))
    return latents


def epochs(make: Callable[[torch.Tensor, int], torch.Tensor], count: int = 240) -> Callable[[], Iterator[Labelled]]:
    labels = torch.arange(count) % CLASSES
    latents, valid = make(labels, 0), torch.ones(count, T, dtype=torch.bool)

    def epoch() -> Iterator[Labelled]:
        for start in range(0, count, 24):
            part = slice(start, start + 24)
            yield Labelled(latents[part], valid[part], labels[part])

    return epoch


def accuracies(make: Callable[[torch.Tensor, int], torch.Tensor]) -> dict[str, dict[str, Accuracy]]:
    test = ProbeTest(train_probes(epochs(make), channels=D, classes=CLASSES, options=OPTIONS, seed=0))
    labels = torch.arange(90) % CLASSES
    kinds = {"true": make(labels, 1), "predicted": torch.randn(90, T, H, W, D)}
    for part in (slice(0, 50), slice(50, 90)):
        valid = torch.ones(len(labels[part]), T, dtype=torch.bool)
        ids = [f"video{number}-0" for number in range(90)[part]]
        test.add({kind: latents[part] for kind, latents in kinds.items()}, valid, labels[part], ids)
    assert test.clips == 90 and test.chance == pytest.approx(1 / 3)
    return test.accuracies()


def test_both_find_what_the_mean_tells_and_nothing_in_noise() -> None:
    for found in accuracies(everywhere).values():
        assert found["true"].accuracy > 0.95
        assert found["predicted"].accuracy < 0.6
        assert found["predicted"].interval.low < found["predicted"].accuracy < found["predicted"].interval.high <= 1


def test_a_probe_that_is_always_or_never_right_has_an_interval() -> None:
    """4 clips of each of 5 videos: the videos count. The interval of a bootstrap has no width there."""
    test = ProbeTest({"sure": Sure()}, video_of={f"clip{number}": f"video{number // 4}" for number in range(20)})
    latents, valid = torch.zeros(20, T, H, W, D), torch.ones(20, T, dtype=torch.bool)
    labels = torch.zeros(20, dtype=torch.long)
    test.add({"right": latents, "wrong": latents + 1}, valid, labels, [f"clip{number}" for number in range(20)])
    found = test.accuracies()["sure"]
    width = 1.96**2 / (5 + 1.96**2)
    assert (found["right"].accuracy, found["right"].interval.low) == (1, pytest.approx(1 - width))
    assert (found["wrong"].accuracy, found["wrong"].interval.high) == (0, pytest.approx(width))


class Sure(torch.nn.Module):
    """Names class 0 for latents of zeros and class 1 for others."""

    def forward(self, latents: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.full((len(latents),), 0.5), latents.mean((1, 2, 3, 4))], dim=1)


def test_attention_finds_what_one_token_tells() -> None:
    found = accuracies(in_one_token)
    assert found["attentive"]["true"].accuracy > 0.9
    assert found["linear"]["true"].accuracy < 0.6


def test_padding_is_not_looked_at() -> None:
    probes = train_probes(epochs(everywhere), channels=D, classes=CLASSES, options=ONE_EPOCH, seed=0)
    latents, valid = torch.randn(4, T, H, W, D), torch.tensor([[True, False]]).expand(4, T)
    other = latents.clone()
    other[:, 1] = 1e3
    for probe in probes.values():
        torch.testing.assert_close(probe(latents, valid), probe(other, valid))


def test_the_same_seed_gives_the_same_probes() -> None:
    first, second = (
        train_probes(epochs(everywhere), channels=D, classes=CLASSES, options=ONE_EPOCH, seed=0) for _ in range(2)
    )
    for name, probe in first.items():
        for one, other in zip(probe.parameters(), second[name].parameters(), strict=True):
            assert torch.equal(one, other)


def test_nothing_to_learn_from_or_to_ask_is_an_error() -> None:
    with pytest.raises(DataError, match="no training clip has a label"):
        train_probes(lambda: iter(()), channels=D, classes=CLASSES, options=OPTIONS, seed=0)
    with pytest.raises(DataError, match="nothing is probed"):
        ProbeTest({}).accuracies()
