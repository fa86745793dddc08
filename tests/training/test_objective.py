"""The objective: what counts, what it costs, what copying would have cost, and whom a bad loss is blamed on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flcache.batch import LatentBatch
from flcache.errors import ConfigError, LeakError, TrainingError
from flcache.training.objective import check_finite, counted_splits, next_step_loss

B, T = 3, 5
SHAPE = (B, T, 2, 3, 4)


def a_batch() -> LatentBatch:
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(B, T, dtype=torch.bool)
    return LatentBatch(latents, latents, torch.arange(5.0).expand(B, T), valid, ("a", "b", "c"), 2)


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
def test_loss_equals_the_direct_formula_over_what_counts(kind: str) -> None:
    batch = a_batch()
    batch.valid[1, 3:] = False
    prediction = torch.randn(B, T - 1, *SHAPE[2:])
    distances = []
    for clip, step in [(0, 2), (0, 4), (1, 2), (2, 2), (2, 4)]:
        off = (prediction[clip, step - 1] - batch.latents[clip, step]).double().abs()
        smooth = torch.where(off < 1, off.square() / 2, off - 0.5)
        distances.append({"l1": off, "l2": off.square(), "smooth_l1": smooth}[kind].mean())
    result = next_step_loss(prediction, batch, [2, 4], kind)
    assert result.loss.item() == pytest.approx(torch.stack(distances).mean().item(), rel=1e-5)
    per_clip = [(distances[0] + distances[1]) / 2, distances[2], (distances[3] + distances[4]) / 2]
    assert result.per_clip.tolist() == pytest.approx([mean.item() for mean in per_clip], rel=1e-5)


def test_copying_costs_exactly_the_copy_last_metric() -> None:
    batch = a_batch()
    result = next_step_loss(batch.latents[:, :-1], batch, [1, 3], "l1")
    assert torch.equal(result.metrics["loss/prediction"], result.metrics["loss/copy_last"])
    assert result.loss > 0
    perfect = next_step_loss(batch.latents[:, 1:], batch, [1, 3], "l1")
    assert perfect.loss == 0
    assert torch.equal(perfect.metrics["loss/copy_last"], result.metrics["loss/copy_last"])


def test_gradient_reaches_the_latents_and_never_the_targets() -> None:
    latents, targets = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE, requires_grad=True)
    batch = replace(a_batch(), latents=latents, targets=targets)
    result = next_step_loss(2 * batch.latents[:, :-1], batch, range(1, T), "l2")
    result.loss.backward()
    assert latents.grad is not None
    assert (latents.grad[:, :-1] != 0).all()
    assert targets.grad is None
    assert not any(metric.requires_grad for metric in (*result.metrics.values(), result.per_clip))


def test_shared_latents_and_targets_get_gradient_as_latents_only() -> None:
    latents = torch.randn(SHAPE, requires_grad=True)
    batch = replace(a_batch(), latents=latents, targets=latents)
    next_step_loss(batch.latents[:, :-1], batch, range(1, T), "l2").loss.backward()
    assert latents.grad is not None
    assert (latents.grad[:, -1] == 0).all()


def test_batch_without_a_valid_target_costs_nothing() -> None:
    batch = a_batch()
    batch.valid[:, 1:] = False
    prediction = torch.randn(B, T - 1, *SHAPE[2:], requires_grad=True)
    result = next_step_loss(prediction, batch, range(1, T), "l1")
    result.loss.backward()
    assert result.loss == 0
    assert prediction.grad is not None
    assert (prediction.grad == 0).all()
    assert result.per_clip.tolist() == [0, 0, 0]


def test_positions_that_do_not_count_get_no_gradient() -> None:
    prediction = torch.randn(B, T - 1, *SHAPE[2:], requires_grad=True)
    next_step_loss(prediction, a_batch(), [2], "l2").loss.backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().amax(dim=(0, 2, 3, 4)).bool().tolist() == [False, True, False, False]


def test_counted_splits_follow_the_leak_rule() -> None:
    assert counted_splits([0, 1, 2, 3], allow_leak=False) == [1, 2, 3]
    assert counted_splits([1, 1, 3, 3], allow_leak=False) == [2]
    assert counted_splits([3, 3, 3, 3], allow_leak=True) == [1, 2, 3]
    with pytest.raises(LeakError, match=r"encode\.context=step"):
        counted_splits([3, 3, 3, 3], allow_leak=False)


def test_non_finite_loss_is_blamed_on_its_clips() -> None:
    batch = a_batch()
    check_finite(torch.tensor(1.0), torch.ones(B), batch.ids)
    prediction = batch.latents[:, :-1].clone()
    prediction[1, 0, 0, 0, 0] = torch.nan
    result = next_step_loss(prediction, batch, range(1, T), "l1")
    with pytest.raises(TrainingError, match="the loss is nan: not finite for clips b;"):
        check_finite(result.loss, result.per_clip, batch.ids)


def test_unknown_loss_lists_the_known_ones() -> None:
    batch = a_batch()
    with pytest.raises(ConfigError, match=r'training.loss: unknown "mse"; choose from l1, l2, smooth_l1'):
        next_step_loss(batch.latents[:, 1:], batch, [1], "mse")
