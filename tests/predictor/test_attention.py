"""Block-causal attention in groups of queries equals one plain masked softmax."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from flcache.predictor.attention import QUERY_TOKENS, block_causal_attention, block_causal_mask, flex_block_causal

STEP_TOKENS = [1, 48, QUERY_TOKENS // 2, QUERY_TOKENS, QUERY_TOKENS + 16]


@pytest.mark.parametrize("step_tokens", STEP_TOKENS)
@pytest.mark.parametrize("new_steps", [5, 2, 1])
def test_attention_equals_a_plain_masked_softmax(step_tokens: int, new_steps: int) -> None:
    length = 5 * step_tokens
    queries, keys, values = torch.randn(3, 1, 2, length, 8)
    queries = queries[:, :, -new_steps * step_tokens :]
    step = torch.arange(length) // step_tokens
    future = step[-new_steps * step_tokens :, None] < step
    weights = (queries @ keys.mT / 8**0.5).masked_fill(future, -torch.inf).softmax(-1)
    attended = block_causal_attention(queries, keys, values, step_tokens)
    torch.testing.assert_close(attended, weights @ values, atol=1e-5, rtol=1e-4)


def test_mask_lets_a_step_see_itself_and_its_past() -> None:
    mask = block_causal_mask(4, 6, 2, torch.float32, torch.device("cpu"))
    assert torch.isfinite(mask).tolist() == [[True] * 4 + [False] * 2] * 2 + [[True] * 6] * 2


def test_mask_made_in_inference_mode_serves_training() -> None:
    queries = torch.randn(1, 1, 21, 8, requires_grad=True)  # a size of its own: the mask is not in the cache yet
    with torch.inference_mode():
        block_causal_attention(queries, queries, queries, 7)
    block_causal_attention(queries, queries, queries, 7).sum().backward()
    assert queries.grad is not None


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_what_the_cpu_path_sees() -> None:
    """Uncompiled and on a CPU: the mask is the same there."""
    queries, keys, values = torch.randn(3, 1, 2, 4 * 48, 16)
    queries = queries[:, :, -2 * 48 :]
    expected = block_causal_attention(queries, keys, values, 48)
    torch.testing.assert_close(
        flex_block_causal(flex_attention, queries, keys, values, 48), expected, atol=1e-5, rtol=1e-4
    )
