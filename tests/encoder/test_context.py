"""The leak rule on real encoders: a legal context keeps every bit whatever the later pixels are; `full` moves."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from flcache.encoder import ContextRule, EncoderSource, LatentVideoModel, describe_encoder, load_encoder, seen_until
from flcache.encoder.context import MODES, passes
from flcache.errors import EncoderError, LeakError
from flcache.leak import check_boundary, legal_boundaries, middle_boundary

FRAMES, STEPS, SIZE = 16, 8, 32
VJEPA2: dict[str, Any] = {
    "model_type": "vjepa2",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "crop_size": SIZE,
    "patch_size": 8,
    "frames_per_clip": FRAMES,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}
VIDEOMAE = {
    "model_type": "videomae",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": 8,
    "num_frames": 8,
}
RULES = [
    ContextRule("step"),
    ContextRule("step", repeat_frames=True),
    *(ContextRule("window", window=window) for window in (1, 2, 3, 4)),
    *(ContextRule("prefix", prefix_steps=steps) for steps in (1, 3, 7)),
    ContextRule("prefix"),
    ContextRule("full"),
]


def build(rule: ContextRule, architecture: dict[str, Any] = VJEPA2) -> LatentVideoModel:
    return load_encoder(EncoderSource(architecture=architecture), context=rule)


def random_frames(seed: int, *, clips: int = 2, frames: int = FRAMES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (clips, frames, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


def changed_from(frames: torch.Tensor, start: int, seed: int) -> torch.Tensor:
    """`frames` with other pixels from frame `start` on: all of them, one frame's, or a single value's."""
    chance, changed = random.Random(seed), frames.clone()
    kind = seed % 3
    if kind == 0:
        changed[:, start:] = random_frames(1000 + seed, clips=len(frames), frames=frames.shape[1])[:, start:]
        return changed
    frame = chance.randrange(start, frames.shape[1])
    place = (slice(None), frame) if kind == 1 else (0, frame, chance.randrange(SIZE), chance.randrange(SIZE), 1)
    changed[place] = 255 - changed[place]
    return changed


def name(rule: ContextRule) -> str:
    return f"{rule.mode}-{rule.window or rule.prefix_steps or ''}{'-repeat' if rule.repeat_frames else ''}"


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_contexts_of_legal_boundaries_keep_every_bit_under_any_change_of_later_pixels(rule: ContextRule) -> None:
    model, frames = build(rule), random_frames(0)
    before = model(frames)
    legal = legal_boundaries(model.seen_until(FRAMES))
    assert bool(legal) == (rule.mode != "full")
    for seed in range(9 if legal else 0):
        boundary = random.Random(seed).choice(legal)
        after = model(changed_from(frames, boundary * model.tubelet_size, seed))
        assert torch.equal(before[:, :boundary], after[:, :boundary]), (boundary, seed)
        assert not torch.equal(before[:, boundary:], after[:, boundary:]), (boundary, seed)


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_contexts_of_illegal_boundaries_move(rule: ContextRule) -> None:
    """The rule forbids no more than it must: behind every illegal boundary the context really does see the future."""
    model, frames = build(rule), random_frames(0, clips=1)
    before, seen = model(frames), model.seen_until(FRAMES)
    for boundary in sorted(set(range(1, len(seen))) - set(legal_boundaries(seen))):
        after = model(changed_from(frames, boundary * model.tubelet_size, seed=0))
        assert not torch.equal(before[:, :boundary], after[:, :boundary]), boundary


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_what_a_step_has_seen_is_what_moves_it(rule: ContextRule) -> None:
    """Step t moves with the pixels of step `seen_until[t]`, and with none that come later."""
    model, frames = build(rule), random_frames(0, clips=1)
    before = model(frames)
    for step, last in enumerate(model.seen_until(FRAMES)):
        tubelet = model.tubelet_size
        changed = frames.clone()
        changed[:, last * tubelet : (last + 1) * tubelet] = 255 - changed[:, last * tubelet : (last + 1) * tubelet]
        assert not torch.equal(before[:, step], model(changed)[:, step])
        if (last + 1) * tubelet < FRAMES:
            later = model(changed_from(frames, (last + 1) * tubelet, seed=0))
            assert torch.equal(before[:, step], later[:, step])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (ContextRule("step"), [0, 1, 2, 3, 4, 5, 6, 7]),
        (ContextRule("window", window=3), [2, 2, 2, 5, 5, 5, 7, 7]),
        (ContextRule("window", window=9), [7] * 8),
        (ContextRule("prefix", prefix_steps=3), [2, 2, 2, 7, 7, 7, 7, 7]),
        (ContextRule("prefix"), [3, 3, 3, 3, 7, 7, 7, 7]),
        (ContextRule("full"), [7] * 8),
    ],
)
def test_seen_until(rule: ContextRule, expected: list[int]) -> None:
    assert seen_until(rule, STEPS) == expected
    kept = [step for piece in passes(rule, STEPS) for step in piece.kept]
    assert kept == list(range(STEPS))


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_a_rule_comes_back_from_a_spec(rule: ContextRule) -> None:
    again = ContextRule.from_dict(rule.as_dict(STEPS))
    assert passes(again, STEPS) == passes(rule, STEPS) and again.repeat_frames == rule.repeat_frames


def test_windows_and_prefixes_are_what_their_frames_give_alone() -> None:
    frames = random_frames(1)
    full = build(ContextRule("full"))
    windows = build(ContextRule("window", window=3))(frames)
    pieces = [full(frames[:, start : start + 6]) for start in range(0, FRAMES, 6)]
    torch.testing.assert_close(windows, torch.cat(pieces, dim=1), atol=1e-5, rtol=1e-5)
    prefix = build(ContextRule("prefix", prefix_steps=3))(frames)
    torch.testing.assert_close(prefix[:, :3], full(frames[:, :6]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prefix[:, 3:], full(frames)[:, 3:], atol=1e-5, rtol=1e-5)


def test_a_repeated_frame_is_a_step_as_in_vjepa2_ac() -> None:
    model, frames = build(ContextRule("step", repeat_frames=True)), random_frames(2, frames=5)
    latents = model(frames)
    assert latents.shape[1] == 5 and model.tubelet_size == 1 and model.seen_until(5) == [0, 1, 2, 3, 4]
    assert tuple(latents.shape[1:]) == model.latent_shape(5)
    pairs = frames.repeat_interleave(2, dim=1)
    torch.testing.assert_close(latents, build(ContextRule("step"))(pairs), atol=1e-5, rtol=1e-5)
    description = describe_encoder(EncoderSource(architecture=VJEPA2), context=model.context)
    assert description.latent_shape(5) == model.latent_shape(5)


def test_windows_make_a_model_of_a_fixed_number_of_frames_honest() -> None:
    model = build(ContextRule("window", window=4), VIDEOMAE)
    frames = random_frames(3)
    before, after = model(frames), model(changed_from(frames, 8, seed=0))
    assert legal_boundaries(model.seen_until(FRAMES)) == [4]
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.equal(before[:, 4:], after[:, 4:])
    with pytest.raises(EncoderError, match=r"encode\.context=window and encode\.window=4"):
        build(ContextRule("step"), VIDEOMAE)(frames)


def test_an_image_encoder_takes_every_step_alone_whatever_is_asked() -> None:
    architecture = {**VIDEOMAE, "model_type": "dinov2"}
    del architecture["num_frames"]
    for mode in ("full", "prefix"):
        model = build(ContextRule(mode), architecture)
        assert model.context == ContextRule() and model.seen_until(4) == [0, 1, 2, 3]
        assert (
            describe_encoder(EncoderSource(architecture=architecture), context=ContextRule(mode)).context.mode == "step"
        )


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_illegal_boundaries_are_refused_with_the_modes_that_would_do(rule: ContextRule) -> None:
    steps = FRAMES if rule.repeat_frames else STEPS
    seen = seen_until(rule, steps)
    for boundary in range(1, steps):
        if boundary in legal_boundaries(seen):
            assert check_boundary(seen, boundary) is False
            continue
        wanted = (
            rf"encode.context=step.*encode.window. that divides {boundary}.*encode.prefix_steps={boundary}.*allow_leak"
        )
        with pytest.raises(LeakError, match=wanted):
            check_boundary(seen, boundary)
        assert check_boundary(seen, boundary, allow_leak=True) is True


def test_the_modes_that_an_error_names_would_do() -> None:
    for boundary in range(1, STEPS):
        windows = [ContextRule("window", window=k) for k in range(1, boundary + 1) if boundary % k == 0]
        for rule in (ContextRule("step"), *windows, ContextRule("prefix", prefix_steps=boundary)):
            assert check_boundary(seen_until(rule, STEPS), boundary) is False


def test_the_middle_is_the_nearest_legal_boundary() -> None:
    assert [middle_boundary(seen_until(rule, 8)) for rule in RULES] == [4, 4, 4, 4, 3, 4, 1, 3, 7, 4, 4]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "causal"}, '"causal" is none of ' + ", ".join(MODES)),
        ({"mode": "window"}, "needs it"),
        ({"mode": "step", "window": 2}, "belongs to .encode.context=window"),
        ({"mode": "full", "prefix_steps": 2}, 'not to "full"'),
        ({"mode": "window", "window": 2, "repeat_frames": True}, "belongs to .encode.context=step"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        ContextRule(**fields)


@pytest.mark.parametrize("steps", [8, 9])
def test_a_prefix_without_targets_is_an_error(steps: int) -> None:
    with pytest.raises(EncoderError, match="choose 1 to 7"):
        seen_until(ContextRule("prefix", prefix_steps=steps), 8)
